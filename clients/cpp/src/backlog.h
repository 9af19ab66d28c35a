/// The records that are logged and not acknowledged, as the messages that carry them.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "headrace/v1/metric_service.pb.h"

namespace headrace {

/// The most points in a batch; a record fits a batch.
inline constexpr std::size_t kRecordPointsMax = 8'192;

/// Consecutive records as columns: one batch, or, after a resume in its middle, the
/// rest of one. Written until it is sealed, then only read, also by several threads.
class Block {
 public:
  Block(std::uint64_t first_sequence, std::size_t capacity_points);

  void Add(std::uint32_t index, std::int64_t step, std::int64_t time_unix_us, double value) {
    batch_->add_series_index(index);
    batch_->add_step(step);
    batch_->add_time_unix_us(time_unix_us);
    batch_->add_value(value);
  }
  void EndRecord();

  [[nodiscard]] std::size_t points() const {
    return static_cast<std::size_t>(batch_->value_size());
  }
  [[nodiscard]] std::uint64_t first_sequence() const { return batch_->first_sequence(); }
  [[nodiscard]] std::uint64_t last_sequence() const {
    return first_sequence() + batch_->record_count() - 1;
  }
  [[nodiscard]] std::size_t PointsBefore(std::uint64_t sequence) const;

  const std::chrono::steady_clock::time_point started = std::chrono::steady_clock::now();
  bool sealed = false;                  ///< takes no more records
  std::size_t acknowledged_points = 0;  ///< at its beginning

 private:
  friend std::shared_ptr<const v1::WriteMetricsRequest> RequestFrom(std::shared_ptr<const Block>,
                                                                    std::uint64_t);

  v1::WriteMetricsRequest request_;
  v1::MetricBatch* batch_ = request_.mutable_batch();
  std::vector<std::size_t> ends_;  // how many points the records up to each have
};

/// Returns the message with the block's records from `sequence` on. The whole block is
/// not copied, but shared.
std::shared_ptr<const v1::WriteMetricsRequest> RequestFrom(std::shared_ptr<const Block> block,
                                                           std::uint64_t sequence);

/// All blocks, in sequence. Not for several threads at a time.
class Backlog {
 public:
  explicit Backlog(std::size_t batch_points_max) : batch_points_max_(batch_points_max) {}

  /// Returns the block for a record of so many points; End closes the record.
  Block& Begin(std::size_t points);
  void End();

  /// Drops the records up to `committed`.
  void Forget(std::uint64_t committed);

  /// Returns the block with the record; null when there is none yet.
  [[nodiscard]] std::shared_ptr<Block> Find(std::uint64_t sequence) const;

  [[nodiscard]] std::uint64_t last_sequence() const { return last_sequence_; }
  /// Logged and not acknowledged.
  [[nodiscard]] std::size_t points() const { return points_; }

 private:
  std::size_t batch_points_max_;
  std::deque<std::shared_ptr<Block>> blocks_;
  std::uint64_t last_sequence_ = 0;
  std::size_t points_ = 0;
};

}  // namespace headrace
