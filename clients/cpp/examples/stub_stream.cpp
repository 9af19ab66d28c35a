// Streams metrics with nothing but protoc's output: stub_stream HOST:PORT.
#include <grpcpp/grpcpp.h>
#include <headrace/v1/metric_service.grpc.pb.h>
#include <headrace/v1/run_service.grpc.pb.h>

#include <iostream>
#include <random>

int main(int, char** arguments) {
  std::random_device random;
  std::string ids;  // of the run, of the writer, of its incarnation
  while (ids.size() < 96) ids += "0123456789abcdef"[random() % 16];
  auto channel = grpc::CreateChannel(arguments[1], grpc::InsecureChannelCredentials());
  grpc::ClientContext creating, writing;
  headrace::v1::CreateRunRequest run;
  headrace::v1::CreateRunResponse created;
  run.set_run_id(ids.substr(0, 32));
  headrace::v1::RunService::NewStub(channel)->CreateRun(&creating, run, &created);
  auto stream = headrace::v1::MetricService::NewStub(channel)->WriteMetrics(&writing);
  headrace::v1::WriteMetricsRequest open, keys, batch, finish;
  open.mutable_open()->set_run_id(run.run_id());
  open.mutable_open()->set_writer_id(ids.substr(32, 32));
  open.mutable_open()->set_incarnation(ids.substr(64));
  keys.mutable_keys()->add_keys()->set_key("loss");  // index 0
  batch.mutable_batch()->set_first_sequence(1);
  batch.mutable_batch()->set_record_count(100);
  for (int n = 1; n <= 100; ++n) {
    batch.mutable_batch()->add_series_index(0);
    batch.mutable_batch()->add_step(n);
    batch.mutable_batch()->add_time_unix_us(std::time(nullptr) * 1'000'000);
    batch.mutable_batch()->add_value(1.0 / n);
  }
  finish.mutable_finish()->set_last_sequence(100);
  for (const auto* request : {&open, &keys, &batch, &finish}) stream->Write(*request);
  headrace::v1::WriteMetricsResponse response;
  while (stream->Read(&response))
    if (response.has_finished())
      std::cout << run.run_id() << ' ' << response.finished().counters().accepted_points() << '\n';
}
