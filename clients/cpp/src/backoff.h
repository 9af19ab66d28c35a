/// What to do after a failure, and when.
#pragma once

#include <chrono>
#include <optional>
#include <random>

#include "headrace/error.h"

namespace headrace {

/// What the contract says a client does after a failure.
enum class Retry {
  kNever,   ///< the same fails again
  kResume,  ///< reopen and continue; a defect if it recurs without progress
  kLater,   ///< resume after a wait
};

Retry RetryOf(std::error_code code);

/// Decides how long to wait before the next attempt. For one thread.
class Backoff {
 public:
  static constexpr std::chrono::milliseconds kFirstWait{100};
  static constexpr std::chrono::milliseconds kWaitMax{5'000};
  /// So many failures in a row that "resume" should have cured, without progress, are
  /// a defect that no further attempt will cure.
  static constexpr int kResumesMax = 5;

  /// Forgets the failures.
  void Progress() { failures_ = resumes_ = 0; }

  /// Counts a failure and returns the wait; nothing when there is to be no further
  /// attempt. Half of the wait is random, so that those who failed together do not
  /// return together.
  std::optional<std::chrono::milliseconds> Next(const Error& error);

  /// Returns a random part of a span.
  std::chrono::milliseconds PartOf(std::chrono::milliseconds span);

  [[nodiscard]] int failures() const { return failures_; }

 private:
  int failures_ = 0;
  int resumes_ = 0;
  std::minstd_rand random_{std::random_device{}()};
};

}  // namespace headrace
