#include "headrace/writer.h"

#include <mutex>
#include <thread>

#include "headrace/client.h"
#include "stream.h"

namespace headrace {

/// The writer's thread and what it works on.
class Writer::Threads {
 public:
  Threads(std::shared_ptr<Connection> connection, WriterOptions options)
      : connection_(std::move(connection)), state_(std::move(options)) {}
  ~Threads() { Close(); }

  WriterState& state() { return state_; }

  void Close() {
    std::call_once(closed_, [this] {
      state_.Close();
      sender_.request_stop();
      sender_.join();
    });
  }

 private:
  const std::shared_ptr<Connection> connection_;
  WriterState state_;
  std::once_flag closed_;
  std::jthread sender_{
      [this](const std::stop_token& stop) { RunStreams(*connection_, state_, stop); }};
};

Writer::Writer(std::unique_ptr<Threads> threads) : threads_(std::move(threads)) {}
Writer::Writer(Writer&&) noexcept = default;
Writer& Writer::operator=(Writer&&) noexcept = default;
Writer::~Writer() = default;

Writer Client::OpenWriter(WriterOptions options) const {
  return Writer(std::make_unique<Writer::Threads>(connection_, std::move(options)));
}

std::error_code Writer::Log(std::int64_t step, std::span<const Value> values) {
  const auto now = std::chrono::system_clock::now();
  return LogAt(step, std::chrono::time_point_cast<std::chrono::microseconds>(now), values);
}

std::error_code Writer::LogAt(std::int64_t step, Time time, std::span<const Value> values) {
  return threads_->state().Log(step, time.time_since_epoch().count(), values);
}

void Writer::Flush(std::chrono::milliseconds timeout) { threads_->state().Flush(timeout); }

void Writer::Finish(std::chrono::milliseconds timeout) {
  threads_->state().Finish(timeout);
  Close();
}

void Writer::Close() { threads_->Close(); }

WriterStatus Writer::Status() const { return threads_->state().Status(); }

}  // namespace headrace
