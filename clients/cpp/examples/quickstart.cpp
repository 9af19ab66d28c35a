// Logs a thousand steps and reads them back: quickstart [ADDRESS].
#include <headrace/client.h>

#include <iostream>

int main(int count, char** arguments) {
  const auto client = headrace::Client::Connect(count > 1 ? arguments[1] : "127.0.0.1:7420");
  const auto run = client.CreateRun({.experiment = "digits"});
  auto writer = client.OpenWriter({.run_id = run.run_id});
  for (int step = 0; step < 1'000; ++step) {
    writer.Log(step, {{"loss", 1.0 / (step + 1)}, {"accuracy", 0.9}});
  }
  writer.Finish();
  client.FinishRun(run.run_id);
  for (const auto& series : client.ReadMetrics(run.run_id)) {
    std::cout << series.key << ": " << series.steps.size() << " points\n";
  }
}
