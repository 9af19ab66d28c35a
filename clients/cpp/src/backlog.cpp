#include "backlog.h"

#include <algorithm>
#include <utility>

namespace headrace {
namespace {

template <typename Column>
void CopyFrom(const Column& source, std::size_t start, Column* target) {
  target->Add(source.begin() + static_cast<std::ptrdiff_t>(start), source.end());
}

}  // namespace

Block::Block(std::uint64_t first_sequence, std::size_t capacity_points) {
  batch_->set_first_sequence(first_sequence);
  const int capacity = static_cast<int>(capacity_points);
  batch_->mutable_series_index()->Reserve(capacity);
  batch_->mutable_step()->Reserve(capacity);
  batch_->mutable_time_unix_us()->Reserve(capacity);
  batch_->mutable_value()->Reserve(capacity);
}

void Block::EndRecord() {
  ends_.push_back(points());
  batch_->set_record_count(static_cast<std::uint32_t>(ends_.size()));
}

std::size_t Block::PointsBefore(std::uint64_t sequence) const {
  return sequence <= first_sequence() ? 0 : ends_[sequence - first_sequence() - 1];
}

std::shared_ptr<const v1::WriteMetricsRequest> RequestFrom(std::shared_ptr<const Block> block,
                                                           std::uint64_t sequence) {
  if (sequence == block->first_sequence()) {
    const v1::WriteMetricsRequest* whole = &block->request_;
    return {std::move(block), whole};
  }
  auto request = std::make_shared<v1::WriteMetricsRequest>();
  const v1::MetricBatch& source = *block->batch_;
  v1::MetricBatch* rest = request->mutable_batch();
  const std::size_t start = block->PointsBefore(sequence);
  rest->set_first_sequence(sequence);
  rest->set_record_count(static_cast<std::uint32_t>(block->last_sequence() - sequence + 1));
  CopyFrom(source.series_index(), start, rest->mutable_series_index());
  CopyFrom(source.step(), start, rest->mutable_step());
  CopyFrom(source.time_unix_us(), start, rest->mutable_time_unix_us());
  CopyFrom(source.value(), start, rest->mutable_value());
  return request;
}

Block& Backlog::Begin(std::size_t points) {
  if (!blocks_.empty()) {
    Block& last = *blocks_.back();
    if (!last.sealed && last.points() + points <= batch_points_max_) {
      return last;
    }
    last.sealed = true;
  }
  // A writer that logs little needs no large blocks.
  const std::size_t capacity = std::max(points, std::min(points * 4, batch_points_max_));
  blocks_.push_back(std::make_shared<Block>(last_sequence_ + 1, capacity));
  return *blocks_.back();
}

void Backlog::End() {
  Block& block = *blocks_.back();
  const std::size_t before = block.PointsBefore(last_sequence_ + 1);
  block.EndRecord();
  points_ += block.points() - before;
  ++last_sequence_;
  block.sealed = block.sealed || block.points() >= batch_points_max_;
}

void Backlog::Forget(std::uint64_t committed) {
  while (!blocks_.empty() && blocks_.front()->first_sequence() <= committed) {
    Block& block = *blocks_.front();
    const std::uint64_t last = block.last_sequence();
    const std::size_t acknowledged = block.PointsBefore(std::min(committed, last) + 1);
    points_ -= acknowledged - block.acknowledged_points;
    block.acknowledged_points = acknowledged;
    if (committed < last) {
      return;
    }
    blocks_.pop_front();
  }
}

std::shared_ptr<Block> Backlog::Find(std::uint64_t sequence) const {
  const auto found = std::partition_point(
      blocks_.begin(), blocks_.end(),
      [sequence](const auto& block) { return block->last_sequence() < sequence; });
  return found == blocks_.end() ? nullptr : *found;
}

}  // namespace headrace
