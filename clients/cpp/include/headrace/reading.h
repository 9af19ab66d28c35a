/// Reading metrics as columns.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "headrace/run.h"

namespace headrace {

/// How the ranks of one key become one series.
enum class RankAggregation { kUnspecified, kMean, kMin, kMax, kSum };

/// What ReadMetrics returns; by default everything.
struct ReadOptions {
  std::vector<std::string> keys{};    ///< none: all
  std::vector<std::int32_t> ranks{};  ///< none: all
  RankAggregation rank_aggregation = RankAggregation::kUnspecified;
  std::optional<std::int64_t> first_step{};           ///< inclusive
  std::optional<std::int64_t> last_step{};            ///< inclusive
  StepPolicy step_policy = StepPolicy::kUnspecified;  ///< default: the run's
  /// Of each series, chosen so that ends and extremes survive; 0: all.
  std::uint32_t max_points = 0;
  bool include_hidden = false;  ///< points of earlier attempts that later ones hide
  std::optional<std::chrono::milliseconds> timeout{};  ///< absent: none
};

/// The points of one series, ascending in step.
struct Columns {
  std::string key{};
  std::int32_t rank = 0;     ///< -1 when aggregated over ranks
  std::int32_t attempt = 0;  ///< only with include_hidden
  std::vector<std::int64_t> steps{};
  std::vector<std::int64_t> time_unix_us{};  ///< microseconds since 1970-01-01 UTC
  std::vector<double> values{};
};

/// What ListSeries returns; by default everything.
struct ListSeriesOptions {
  std::string key_prefix{};
  std::int32_t page_size = 0;  ///< of one call to the gateway; 0: its default
};

/// A series and the summary of its visible points.
struct Series {
  std::string key{};
  std::int32_t rank = 0;
  std::uint64_t point_count = 0;  ///< repeats included
  std::int64_t last_step = 0;
  std::int64_t last_time_unix_us = 0;
  double last_value = 0;
  double min_value = 0;  ///< NaN ignored; NaN if all are
  double max_value = 0;
};

}  // namespace headrace
