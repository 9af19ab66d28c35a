/// What uploads and downloads have in common.
#pragma once

#include <filesystem>
#include <functional>
#include <stop_token>
#include <string>

#include "backoff.h"
#include "connection.h"
#include "headrace/artifact.h"

namespace headrace {

/// When a transfer ends for want of time or by its user, and what it does between
/// attempts.
class Patience {
 public:
  explicit Patience(const TransferOptions& options);

  /// Waits for the next attempt after `error`; throws it when there is to be none, or
  /// when time is up or the user has stopped meanwhile.
  void AfterFailure(const Error& error);

  [[nodiscard]] Connection::Deadline deadline() const { return deadline_; }
  [[nodiscard]] const std::stop_token& stop() const { return stop_; }

  Backoff backoff;

 private:
  std::stop_token stop_;
  Connection::Deadline deadline_;
};

/// A call that its user can stop.
class StoppableCall {
 public:
  StoppableCall(const Connection& connection, Connection::Deadline deadline,
                const std::stop_token& stop)
      : cancel_(stop, [this] { context.TryCancel(); }) {
    connection.Prepare(context, deadline);
  }
  ~StoppableCall() { context.TryCancel(); }  // of a call that was left early
  StoppableCall(const StoppableCall&) = delete;
  StoppableCall& operator=(const StoppableCall&) = delete;

  grpc::ClientContext context;

 private:
  std::stop_callback<std::function<void()>> cancel_;
};

/// The user's Artifact of the wire's.
Artifact ArtifactOf(const v1::Artifact& artifact);

/// Throws std::system_error about a file, with errno.
[[noreturn]] void ThrowFileError(const std::filesystem::path& file);

}  // namespace headrace
