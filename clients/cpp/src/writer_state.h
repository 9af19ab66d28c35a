/// What a writer's users and its thread share.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <stop_token>
#include <system_error>
#include <vector>

#include "backlog.h"
#include "headrace/v1/metric_service.pb.h"
#include "headrace/writer.h"
#include "key_dictionary.h"

namespace headrace {

/// Where a stream stands: what it is to send next.
struct Cursor {
  std::uint64_t sequence = 1;
  std::size_t keys_sent = 0;
};

/// One message to send, or none for now.
struct Outgoing {
  std::shared_ptr<const v1::WriteMetricsRequest> message{};
  bool last = false;                                   ///< the message is `finish`
  std::chrono::steady_clock::time_point wait_until{};  ///< without a message: look again then
};

/// Decides what is logged, sent, and known to be committed. Knows no connection; safe
/// for all threads.
class WriterState {
 public:
  /// Throws std::invalid_argument for impossible options.
  explicit WriterState(WriterOptions options);

  /// What the user calls; see Writer.
  std::error_code Log(std::int64_t step, std::int64_t time_unix_us, std::span<const Value> values);
  void Flush(std::chrono::milliseconds timeout);
  void Finish(std::chrono::milliseconds timeout);
  void Close();
  [[nodiscard]] WriterStatus Status() const;

  /// The first message of each stream.
  [[nodiscard]] const v1::WriteMetricsRequest& open_message() const { return open_; }

  /// Takes in the answer to it and returns where the stream begins; with `resync`, when
  /// the gateway has lost records that are forgotten here.
  struct Beginning {
    Cursor cursor;
    bool resync;
  };
  Beginning Opened(const v1::Opened& opened);

  /// Returns what a stream sends next, and moves its cursor past it.
  Outgoing Next(Cursor& cursor);

  /// Takes in any later answer.
  void Receive(const v1::WriteMetricsResponse& response);

  /// Waits until there may be something to do, at most until `until`.
  void Wait(const std::stop_token& stop, std::chrono::steady_clock::time_point until);

  /// Ends such a wait, now or when it comes.
  void Wake();

  /// Ends the writer for good.
  void GiveUp(const Error& error);

 private:
  std::error_code Admit(std::unique_lock<std::mutex>& lock, std::size_t points);
  void Append(std::int64_t step, std::int64_t time_unix_us, std::span<const Value> record,
              Rejection& rejected);
  void AddOwn(Rejection rejection);
  void WakeLocked();
  void Progress(std::uint64_t committed, const v1::WriterCounters& counters,
                std::span<const Rejection> rejections);
  void Deliver(std::span<const Rejection> rejections);

  /// Waits for progress, or throws what Writer::Flush does.
  template <typename Reached>
  void Await(std::unique_lock<std::mutex>& lock, std::chrono::milliseconds timeout,
             Reached reached);

  const WriterOptions options_;
  const v1::WriteMetricsRequest open_;
  std::mutex callback_mutex_;  // one callback at a time

  mutable std::mutex mutex_;  // guards all that follows
  std::condition_variable changed_;
  std::condition_variable_any wake_;
  bool woken_ = false;
  Backlog backlog_;
  KeyDictionary keys_;
  std::vector<Rejection> own_rejections_;  // that the thread has to deliver
  std::uint64_t flush_to_ = 0;             // records up to it do not linger
  bool finishing_ = false;
  bool closed_ = false;
  WriterStatus status_;
};

}  // namespace headrace
