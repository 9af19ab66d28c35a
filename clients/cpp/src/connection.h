/// Channels to the gateways, and what every call needs.
#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "deadline.h"
#include "headrace/client.h"
#include "headrace/v1/artifact_service.grpc.pb.h"
#include "headrace/v1/metric_service.grpc.pb.h"
#include "headrace/v1/run_service.grpc.pb.h"
#include "status.h"

namespace headrace {

/// What the addresses given to Connect say.
struct Addresses {
  std::vector<std::string> hosts;  ///< `host:port`
  bool encrypted = false;
};

/// Throws std::invalid_argument unless all are of one kind and have ports.
Addresses ParseAddresses(std::string_view addresses);

/// One channel for each gateway. Safe for all threads.
class Connection {
 public:
  using Deadline = std::optional<std::chrono::system_clock::time_point>;

  /// A channel and what is called over it.
  struct Gateway {
    std::shared_ptr<grpc::Channel> channel;
    std::unique_ptr<v1::RunService::Stub> runs;
    std::unique_ptr<v1::MetricService::Stub> metrics;
    std::unique_ptr<v1::ArtifactService::Stub> artifacts;
  };

  Connection(std::string_view addresses, const ConnectOptions& options);

  /// The gateway whose turn it is, past those that are known not to be reached.
  const Gateway& Next();

  /// Gives a call its token and its deadline.
  void Prepare(grpc::ClientContext& context, Deadline deadline = {}) const;

  /// Makes a call with the default deadline, or an earlier one.
  ///
  /// `method` is called with (const Gateway&, grpc::ClientContext*, Response*).
  template <typename Response, typename Method>
  Response Unary(Method method, Deadline deadline = {}) {
    const auto own = After<std::chrono::system_clock>(call_timeout_);
    return UnaryUntil<Response>(method, std::min(deadline.value_or(own), own));
  }

  /// Makes a call with exactly this deadline.
  template <typename Response, typename Method>
  Response UnaryUntil(Method method, Deadline deadline) {
    grpc::ClientContext context;
    Prepare(context, deadline);
    Response response;
    Check(method(Next(), &context, &response));
    return response;
  }

 private:
  const std::string authorization_;
  const std::chrono::milliseconds call_timeout_;
  std::vector<Gateway> gateways_;
  std::atomic<std::size_t> turn_ = 0;
};

}  // namespace headrace
