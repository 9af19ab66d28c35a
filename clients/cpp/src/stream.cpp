#include "stream.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <thread>

#include "backoff.h"
#include "status.h"

namespace headrace {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr milliseconds kHeartbeatInterval{15'000};

/// How a stream ended.
struct Ending {
  grpc::Status status{};
  std::optional<milliseconds> move_after{};  ///< the gateway asked to move
};

/// One conversation, from `open` to its end.
class Stream {
 public:
  Stream(Connection& connection, WriterState& state, const std::stop_token& stop)
      : state_(state), stop_(stop), cancel_(stop, [this] { context_.TryCancel(); }) {
    connection.Prepare(context_);
    call_ = connection.Next().metrics->WriteMetrics(&context_);
  }

  Ending Converse() {
    v1::WriteMetricsResponse first;
    call_->Write(state_.open_message());  // if it fails, Finish tells why
    if (!call_->Read(&first)) {
      return {.status = call_->Finish()};
    }
    if (!first.has_opened()) {
      context_.TryCancel();
      call_->Finish();
      return {.status = {grpc::StatusCode::UNIMPLEMENTED, "expected `opened`"}};
    }
    {
      // Responses are read while writes are blocked, or neither side could proceed.
      const std::jthread reader([this] { Read(); });
      Send(first.opened());
      call_->WritesDone();
    }
    const int move_after_ms = move_after_ms_;
    Ending ending{.status = call_->Finish()};
    if (move_after_ms != kStay) {
      ending.move_after = milliseconds(move_after_ms);
    }
    return ending;
  }

 private:
  static constexpr int kStay = -1;

  void Read() {
    v1::WriteMetricsResponse response;
    while (call_->Read(&response)) {
      if (response.has_reconnect()) {
        move_after_ms_ = static_cast<int>(response.reconnect().retry_after_ms());
        state_.Wake();
      }
      state_.Receive(response);
    }
    over_ = true;
    state_.Wake();
  }

  /// Sends until there is nothing more to send on this stream, or it broke.
  void Send(const v1::Opened& opened) {
    const auto interval_ms = opened.limits().heartbeat_interval_ms();
    const milliseconds heartbeat =
        (interval_ms > 0 ? milliseconds(interval_ms) : kHeartbeatInterval) * 2 / 3;
    auto [cursor, resync] = state_.Opened(opened);
    if (resync) {
      v1::WriteMetricsRequest request;
      request.mutable_resync()->set_first_sequence(cursor.sequence);
      call_->Write(request);
    }
    auto quiet_since = steady_clock::now();
    while (!over_ && move_after_ms_ == kStay && !stop_.stop_requested()) {
      const Outgoing outgoing = state_.Next(cursor);
      const auto now = steady_clock::now();
      if (outgoing.message) {
        if (!call_->Write(*outgoing.message) || outgoing.last) {
          return;
        }
        quiet_since = now;
      } else if (now >= quiet_since + heartbeat) {
        v1::WriteMetricsRequest request;
        request.mutable_heartbeat();
        if (!call_->Write(request)) {
          return;
        }
        quiet_since = now;
      } else {
        state_.Wait(stop_, std::min(outgoing.wait_until, quiet_since + heartbeat));
      }
    }
  }

  WriterState& state_;
  const std::stop_token stop_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::WriteMetricsRequest, v1::WriteMetricsResponse>>
      call_;
  std::atomic<int> move_after_ms_ = kStay;
  std::atomic<bool> over_ = false;
  std::stop_callback<std::function<void()>> cancel_;
};

}  // namespace

void RunStreams(Connection& connection, WriterState& state, const std::stop_token& stop) {
  Backoff backoff;
  while (!stop.stop_requested()) {
    const std::uint64_t before = state.Status().committed_sequence;
    const Ending ending = Stream(connection, state, stop).Converse();
    const WriterStatus status = state.Status();
    if (status.finished) {
      return;
    }
    if (status.committed_sequence > before) {
      backoff.Progress();
    }
    std::optional<milliseconds> wait;
    if (ending.move_after) {
      wait = backoff.PartOf(*ending.move_after);
    } else {
      const Error error = ErrorOf(ending.status);
      wait = backoff.Next(error);
      if (!wait) {
        if (!stop.stop_requested()) {
          state.GiveUp(error);
        }
        return;
      }
    }
    const auto until = steady_clock::now() + *wait;
    while (!stop.stop_requested() && steady_clock::now() < until) {
      state.Wait(stop, until);
    }
  }
}

}  // namespace headrace
