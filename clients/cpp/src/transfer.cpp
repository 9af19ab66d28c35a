#include "transfer.h"

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <mutex>

#include "timestamp.h"

namespace headrace {

Patience::Patience(const TransferOptions& options) : stop_(options.stop) {
  if (options.timeout) {
    deadline_ = After<std::chrono::system_clock>(*options.timeout);
  }
}

void Patience::AfterFailure(const Error& error) {
  const auto wait = backoff.Next(error);
  if (!wait && !stop_.stop_requested()) {
    throw Error(error);
  }
  std::mutex mutex;
  std::unique_lock lock(mutex);
  std::condition_variable_any never;
  auto until = std::chrono::system_clock::now() + wait.value_or(std::chrono::milliseconds(0));
  if (deadline_) {
    until = std::min(until, *deadline_);
  }
  never.wait_until(lock, stop_, until, [] { return false; });
  if (stop_.stop_requested()) {
    throw Error(StatusCode::kCancelled, "the transfer was stopped");
  }
  if (deadline_ && std::chrono::system_clock::now() >= *deadline_) {
    throw Error(StatusCode::kDeadlineExceeded, std::string("not done in time: ") + error.what());
  }
}

Artifact ArtifactOf(const v1::Artifact& artifact) {
  Artifact result{.run_id = artifact.run_id(),
                  .path = artifact.path(),
                  .size = artifact.size(),
                  .digest = {},
                  .content_type = artifact.content_type(),
                  .create_time = TimeOf(artifact.create_time()),
                  .deduplicated = false};
  std::copy_n(artifact.digest().begin(), std::min(artifact.digest().size(), result.digest.size()),
              result.digest.begin());
  return result;
}

void ThrowFileError(const std::filesystem::path& file) {
  throw std::filesystem::filesystem_error("headrace", file,
                                          std::error_code(errno, std::generic_category()));
}

}  // namespace headrace
