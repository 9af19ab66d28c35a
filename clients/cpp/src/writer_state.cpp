#include "writer_state.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

#include "deadline.h"

namespace headrace {
namespace {

/// 500 keys of 251 characters of 4 bytes stay below the message limit of 1 MiB.
constexpr std::size_t kKeysPerMessage = 500;
/// Of the rejections that this library makes itself; further ones are added to the last.
constexpr std::size_t kOwnRejectionsMax = 16;
constexpr std::chrono::hours kNothingToDo{1};

WriterOptions Checked(WriterOptions options) {
  if (options.run_id.empty()) {
    throw std::invalid_argument("WriterOptions.run_id is required");
  }
  if (options.batch_points_max < 1 || options.batch_points_max > kRecordPointsMax) {
    throw std::invalid_argument("WriterOptions.batch_points_max is 1 to 8,192, not " +
                                std::to_string(options.batch_points_max));
  }
  if (options.writer_id.empty()) {
    options.writer_id = NewId();
  }
  if (options.incarnation.empty()) {
    options.incarnation = NewId();
  }
  return options;
}

v1::WriteMetricsRequest OpenMessage(const WriterOptions& options) {
  v1::WriteMetricsRequest request;
  v1::OpenWriter* open = request.mutable_open();
  open->set_run_id(options.run_id);
  open->set_writer_id(options.writer_id);
  open->set_incarnation(options.incarnation);
  open->set_rank(options.rank);
  open->set_attempt(options.attempt);
  if (options.resume_step) {
    open->set_resume_step(*options.resume_step);
  }
  for (const std::string& key : options.resume_exempt_keys) {
    open->add_resume_exempt_keys(key);
  }
  return request;
}

template <typename Samples>
std::vector<Rejection> RejectionsOf(const Samples& samples) {
  std::vector<Rejection> rejections;
  for (const v1::Rejection& sample : samples) {
    rejections.push_back({.reason = static_cast<Reason>(sample.reason()),
                          .key = sample.key(),
                          .step = sample.step(),
                          .sequence = sample.sequence(),
                          .field = sample.field(),
                          .detail = sample.detail(),
                          .points = sample.points()});
  }
  return rejections;
}

}  // namespace

WriterState::WriterState(WriterOptions options)
    : options_(Checked(std::move(options))),
      open_(OpenMessage(options_)),
      backlog_(options_.batch_points_max) {}

std::error_code WriterState::Log(std::int64_t step, std::int64_t time_unix_us,
                                 std::span<const Value> values) {
  std::unique_lock lock(mutex_);
  if (values.empty()) {
    return {};
  }
  if (const std::error_code error = Admit(lock, values.size())) {
    return error;
  }
  Rejection rejected;
  while (!values.empty()) {
    const auto record = values.first(std::min(values.size(), kRecordPointsMax));
    Append(step, time_unix_us, record, rejected);
    values = values.subspan(record.size());
  }
  if (backlog_.last_sequence() <= status_.committed_sequence) {
    backlog_.Forget(status_.committed_sequence);  // logged by a predecessor
  }
  if (rejected.points > 0) {
    rejected.step = step;
    rejected.sequence = backlog_.last_sequence();
    AddOwn(std::move(rejected));
  }
  return {};
}

/// Waits for room in the window, unless the record is refused.
std::error_code WriterState::Admit(std::unique_lock<std::mutex>& lock, std::size_t points) {
  while (true) {
    if (status_.error) {
      return status_.error->code();
    }
    if (closed_ || finishing_) {
      return Reason::kWriterClosed;
    }
    if (backlog_.points() == 0 || backlog_.points() + points <= options_.window_points) {
      return {};
    }
    if (options_.when_full == WhenFull::kError) {
      return Reason::kWindowFull;
    }
    changed_.wait(lock);
  }
}

void WriterState::Append(std::int64_t step, std::int64_t time_unix_us,
                         std::span<const Value> record, Rejection& rejected) {
  Block& block = backlog_.Begin(record.size());
  const bool fresh = block.points() == 0;
  for (const auto& [key, value] : record) {
    if (const auto index = keys_.IndexOf(key)) {
      block.Add(*index, step, time_unix_us, value);
    } else if (++rejected.points == 1) {
      rejected.key = key;
    }
  }
  backlog_.End();
  if (fresh || block.sealed) {
    WakeLocked();
  }
}

void WriterState::AddOwn(Rejection rejection) {
  if (!options_.on_rejection) {
    return;
  }
  if (own_rejections_.size() == kOwnRejectionsMax) {
    own_rejections_.back().points += rejection.points;
    own_rejections_.back().sequence = rejection.sequence;
    return;
  }
  rejection.reason = Reason::kKeysExhausted;
  rejection.field = "keys";
  rejection.detail = "a writer has at most " + std::to_string(KeyDictionary::kKeysMax) + " keys";
  own_rejections_.push_back(std::move(rejection));
  WakeLocked();
}

void WriterState::Flush(std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  const std::uint64_t target = backlog_.last_sequence();
  flush_to_ = std::max(flush_to_, target);
  WakeLocked();
  Await(lock, timeout, [&] { return status_.committed_sequence >= target; });
}

void WriterState::Finish(std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  finishing_ = true;
  WakeLocked();
  Await(lock, timeout, [&] { return status_.finished; });
}

void WriterState::Close() {
  const std::lock_guard lock(mutex_);
  closed_ = true;
  changed_.notify_all();
}

WriterStatus WriterState::Status() const {
  const std::lock_guard lock(mutex_);
  WriterStatus status = status_;
  status.logged_sequence = backlog_.last_sequence();
  status.pending_points = backlog_.points();
  return status;
}

template <typename Reached>
void WriterState::Await(std::unique_lock<std::mutex>& lock, std::chrono::milliseconds timeout,
                        Reached reached) {
  changed_.wait_until(lock, After<std::chrono::steady_clock>(timeout),
                      [&] { return status_.error || reached() || closed_; });
  if (status_.error) {
    throw Error(*status_.error);
  }
  if (reached()) {
    return;
  }
  if (closed_) {
    throw Error(Reason::kWriterClosed, "the writer is closed");
  }
  throw Error(StatusCode::kDeadlineExceeded,
              std::to_string(backlog_.points()) + " points are not acknowledged after " +
                  std::to_string(timeout.count()) + " ms; the writer goes on");
}

WriterState::Beginning WriterState::Opened(const v1::Opened& opened) {
  std::unique_lock lock(mutex_);
  ++status_.streams;
  const std::uint64_t known = status_.committed_sequence;
  lock.unlock();
  Progress(opened.committed_sequence(), opened.counters(), RejectionsOf(opened.rejections()));
  return {.cursor = {.sequence = std::max(known, opened.committed_sequence()) + 1},
          .resync = opened.committed_sequence() < known};
}

Outgoing WriterState::Next(Cursor& cursor) {
  std::unique_lock lock(mutex_);
  if (!own_rejections_.empty()) {
    const std::vector<Rejection> rejections = std::exchange(own_rejections_, {});
    lock.unlock();
    Deliver(rejections);
    lock.lock();
  }
  cursor.sequence = std::max(cursor.sequence, status_.committed_sequence + 1);
  const std::shared_ptr<Block> block = backlog_.Find(cursor.sequence);
  const auto now = std::chrono::steady_clock::now();
  if (!block) {
    if (!finishing_) {
      return {.wait_until = now + kNothingToDo};
    }
    auto request = std::make_shared<v1::WriteMetricsRequest>();
    // A successor may end with fewer records than are committed already.
    request->mutable_finish()->set_last_sequence(
        std::max(backlog_.last_sequence(), status_.committed_sequence));
    return {.message = std::move(request), .last = true};
  }
  if (!block->sealed && !finishing_ && flush_to_ < block->first_sequence() &&
      now < block->started + options_.linger) {
    return {.wait_until = block->started + options_.linger};
  }
  block->sealed = true;
  const std::vector<std::string>& names = keys_.names();
  if (cursor.keys_sent < names.size()) {
    auto request = std::make_shared<v1::WriteMetricsRequest>();
    const std::size_t end = std::min(names.size(), cursor.keys_sent + kKeysPerMessage);
    for (; cursor.keys_sent < end; ++cursor.keys_sent) {
      v1::KeyDefinition* definition = request->mutable_keys()->add_keys();
      definition->set_index(static_cast<std::uint32_t>(cursor.keys_sent));
      definition->set_key(names[cursor.keys_sent]);
    }
    return {.message = std::move(request)};
  }
  const std::uint64_t first = std::exchange(cursor.sequence, block->last_sequence() + 1);
  return {.message = RequestFrom(block, first)};
}

void WriterState::Receive(const v1::WriteMetricsResponse& response) {
  switch (response.message_case()) {
    case v1::WriteMetricsResponse::kAck: {
      const v1::Ack& ack = response.ack();
      Progress(ack.committed_sequence(), ack.counters(), RejectionsOf(ack.rejections()));
      break;
    }
    case v1::WriteMetricsResponse::kReconnect: {
      const std::lock_guard lock(mutex_);
      ++status_.reconnects;
      break;
    }
    case v1::WriteMetricsResponse::kFinished: {
      const v1::Finished& finished = response.finished();
      Progress(finished.committed_sequence(), finished.counters(), {});
      const std::lock_guard lock(mutex_);
      status_.finished = true;
      changed_.notify_all();
      break;
    }
    default:  // of a newer gateway
      break;
  }
}

void WriterState::Progress(std::uint64_t committed, const v1::WriterCounters& counters,
                           std::span<const Rejection> rejections) {
  std::unique_lock lock(mutex_);
  const std::uint64_t known = status_.committed_sequence;
  lock.unlock();
  for (const Rejection& rejection : rejections) {
    // What stands at or below the known watermark came with an earlier ack.
    if (rejection.sequence > known) {
      Deliver({&rejection, 1});
    }
  }
  lock.lock();
  status_.committed_sequence = std::max(known, committed);
  status_.counters = {.accepted_points = counters.accepted_points(),
                      .late_points = counters.late_points(),
                      .repeated_points = counters.repeated_points(),
                      .rejected_points = counters.rejected_points(),
                      .lost_records = counters.lost_records()};
  backlog_.Forget(status_.committed_sequence);
  changed_.notify_all();
}

void WriterState::Deliver(std::span<const Rejection> rejections) {
  if (!options_.on_rejection) {
    return;
  }
  const std::lock_guard lock(callback_mutex_);
  for (const Rejection& rejection : rejections) {
    options_.on_rejection(rejection);
  }
}

void WriterState::Wait(const std::stop_token& stop, std::chrono::steady_clock::time_point until) {
  std::unique_lock lock(mutex_);
  wake_.wait_until(lock, stop, until, [this] { return woken_; });
  woken_ = false;
}

void WriterState::Wake() {
  const std::lock_guard lock(mutex_);
  WakeLocked();
}

void WriterState::WakeLocked() {
  if (!woken_) {
    woken_ = true;
    wake_.notify_one();
  }
}

void WriterState::GiveUp(const Error& error) {
  const std::lock_guard lock(mutex_);
  status_.error = error;
  changed_.notify_all();
}

}  // namespace headrace
