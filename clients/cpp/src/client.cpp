#include "headrace/client.h"

#include <utility>

#include "connection.h"
#include "timestamp.h"

namespace headrace {
namespace {

Run RunOf(const v1::Run& run) {
  Run result{.run_id = run.run_id(),
             .experiment = run.experiment(),
             .name = run.name(),
             .state = static_cast<RunState>(run.state()),
             .step_policy = static_cast<StepPolicy>(run.step_policy()),
             .late_policy = static_cast<LatePolicy>(run.late_policy()),
             .create_time = TimeOf(run.create_time()),
             .end_time = {},
             .attempts = {},
             .created = false};
  if (run.has_end_time()) {
    result.end_time = TimeOf(run.end_time());
  }
  for (const v1::Attempt& attempt : run.attempts()) {
    Attempt& added = result.attempts.emplace_back();
    added.attempt = attempt.attempt();
    added.start_time = TimeOf(attempt.start_time());
    if (attempt.has_resume_step()) {
      added.resume_step = attempt.resume_step();
    }
  }
  return result;
}

}  // namespace

Client::Client(std::shared_ptr<Connection> connection) : connection_(std::move(connection)) {}

Client Client::Connect(std::string_view addresses, const ConnectOptions& options) {
  return Client(std::make_shared<Connection>(addresses, options));
}

Run Client::CreateRun(const RunOptions& options) const {
  v1::CreateRunRequest request;
  request.set_run_id(options.run_id.empty() ? NewId() : options.run_id);
  request.set_experiment(options.experiment);
  request.set_name(options.name);
  request.set_step_policy(static_cast<v1::StepPolicy>(options.step_policy));
  request.set_late_policy(static_cast<v1::LatePolicy>(options.late_policy));
  const auto response = connection_->Unary<v1::CreateRunResponse>(
      [&](const auto& gateway, auto* context, auto* answer) {
        return gateway.runs->CreateRun(context, request, answer);
      });
  Run run = RunOf(response.run());
  run.created = response.created();
  return run;
}

Run Client::GetRun(const std::string& run_id) const {
  v1::GetRunRequest request;
  request.set_run_id(run_id);
  const auto response =
      connection_->Unary<v1::GetRunResponse>([&](const auto& gateway, auto* context, auto* answer) {
        return gateway.runs->GetRun(context, request, answer);
      });
  return RunOf(response.run());
}

bool Client::FinishRun(const std::string& run_id, std::int32_t attempt, RunState state) const {
  v1::FinishRunRequest request;
  request.set_run_id(run_id);
  request.set_attempt(attempt);
  request.set_state(static_cast<v1::RunState>(state));
  const auto response = connection_->Unary<v1::FinishRunResponse>(
      [&](const auto& gateway, auto* context, auto* answer) {
        return gateway.runs->FinishRun(context, request, answer);
      });
  return response.applied();
}

void Client::HeartbeatRun(const std::string& run_id) const {
  v1::HeartbeatRunRequest request;
  request.set_run_id(run_id);
  connection_->Unary<v1::HeartbeatRunResponse>(
      [&](const auto& gateway, auto* context, auto* answer) {
        return gateway.runs->HeartbeatRun(context, request, answer);
      });
}

}  // namespace headrace
