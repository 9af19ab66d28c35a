/// Runs: one training job, its attempts, and how its steps are read.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace headrace {

/// A time, in microseconds since 1970-01-01 UTC.
using Time = std::chrono::sys_time<std::chrono::microseconds>;

/// What a run's job is doing.
enum class RunState { kUnspecified, kRunning, kFinished, kFailed, kKilled, kLost };

/// Which of several points of one series at one step a read returns. In a read
/// kUnspecified means the run's policy, in CreateRun kLast.
enum class StepPolicy { kUnspecified, kLast, kFirst, kAll };

/// What happens to a point at or below the greatest committed step of its series
/// and attempt. kUnspecified means kAccept.
enum class LatePolicy { kUnspecified, kAccept, kReject };

/// A run to be created.
struct RunOptions {
  std::string run_id{};      ///< 32 lower-case hex digits; default NewId()
  std::string experiment{};  ///< default `Default`
  std::string name{};        ///< for people
  StepPolicy step_policy = StepPolicy::kUnspecified;
  LatePolicy late_policy = LatePolicy::kUnspecified;
};

/// One (re)start of a run's job.
struct Attempt {
  std::int32_t attempt = 0;
  std::optional<std::int64_t> resume_step{};  ///< absent: hides nothing
  Time start_time{};
};

/// One training job.
struct Run {
  std::string run_id{};
  std::string experiment{};
  std::string name{};
  RunState state = RunState::kUnspecified;
  StepPolicy step_policy = StepPolicy::kUnspecified;
  LatePolicy late_policy = LatePolicy::kUnspecified;
  Time create_time{};
  std::optional<Time> end_time{};  ///< absent while running
  std::vector<Attempt> attempts{};
  bool created = false;  ///< by this CreateRun; false when it existed already
};

/// Makes an id for a run, a writer or an incarnation: a UUID of version 7 as 32
/// lower-case hex digits.
std::string NewId();

}  // namespace headrace
