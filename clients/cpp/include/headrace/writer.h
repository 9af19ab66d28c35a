/// Writing metrics.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "headrace/error.h"
#include "headrace/run.h"

namespace headrace {

/// What Log does when the window is full.
enum class WhenFull {
  kBlock,  ///< waits until the gateway has acknowledged enough
  kError,  ///< returns Reason::kWindowFull; the record is not logged
};

/// A sample of rejected points; the other points of their records are stored.
struct Rejection {
  Reason reason = Reason::kUnspecified;
  std::string key{};           ///< or its index in decimal when it has none
  std::int64_t step = 0;       ///< of the first such point
  std::uint64_t sequence = 0;  ///< the record with the point ends at or before it
  std::string field{};
  std::string detail{};      ///< for people
  std::uint64_t points = 0;  ///< how many points this stands for
};

/// A writer to be opened. Only run_id is required.
struct WriterOptions {
  std::string run_id{};
  /// Names the writer, with `incarnation`: 32 lower-case hex digits each. A process
  /// that is to continue another one's writer gives the same two, and logs the same
  /// records again from the first on: those that are committed already are not
  /// sent. Default: new ones.
  std::string writer_id{};
  std::string incarnation{};                      ///< see writer_id
  std::int32_t rank = 0;                          ///< of the process in its job, from 0
  std::int32_t attempt = 1;                       ///< which start of the job this is, from 1
  std::optional<std::int64_t> resume_step{};      ///< the first step computed anew
  std::vector<std::string> resume_exempt_keys{};  ///< keys that no resume step hides

  std::size_t batch_points_max = 4'096;  ///< points in a batch, at most 8,192
  std::chrono::milliseconds linger{50};  ///< how long a record waits for company
  std::size_t window_points = 1 << 20;   ///< points logged and not acknowledged
  WhenFull when_full = WhenFull::kBlock;

  /// Is told of points that were rejected for their content. One call at a time, on
  /// a thread of the writer, which waits for it: it must not wait for the writer,
  /// and not throw.
  std::function<void(const Rejection&)> on_rejection{};
};

/// Counts of a writer since its first stream, as last told by the gateway.
struct Counters {
  std::uint64_t accepted_points = 0;
  std::uint64_t late_points = 0;
  std::uint64_t repeated_points = 0;
  std::uint64_t rejected_points = 0;
  std::uint64_t lost_records = 0;
};

/// How far a writer has come.
struct WriterStatus {
  std::uint64_t logged_sequence = 0;     ///< of the last record logged
  std::uint64_t committed_sequence = 0;  ///< every record up to it is durable
  std::size_t pending_points = 0;        ///< logged and not acknowledged
  Counters counters{};
  bool finished = false;
  std::uint64_t streams = 0;     ///< opened so far
  std::uint64_t reconnects = 0;  ///< how often the gateway asked to move
  std::optional<Error> error{};  ///< why the writer gave up
};

/// A metric's key and value.
using Value = std::pair<std::string_view, double>;

/// Logs records of one process into one run. Made by Client::OpenWriter.
///
/// A thread of the writer batches and sends, and, when the connection or the gateway
/// is gone, tries again for as long as the writer lives. All methods may be called
/// by any number of threads. Destruction is Close.
class Writer {
 public:
  Writer(Writer&&) noexcept;
  Writer& operator=(Writer&&) noexcept;
  ~Writer();

  /// Logs one record: values at a step, now. Steps may come in any order, and again.
  /// Returns at once, unless the window is full and `when_full` is kBlock.
  ///
  /// Returns Reason::kWindowFull, Reason::kWriterClosed, or the code of the error for
  /// which the writer gave up; the record is then not logged. A job that does not
  /// care may ignore it: Flush and Finish will tell.
  std::error_code Log(std::int64_t step, std::span<const Value> values);
  std::error_code Log(std::int64_t step, std::initializer_list<Value> values) {
    return Log(step, std::span(values.begin(), values.size()));
  }

  /// Log at a time of the caller's.
  std::error_code LogAt(std::int64_t step, Time time, std::span<const Value> values);

  /// Waits until everything logged before is committed.
  ///
  /// Throws Error: StatusCode::kDeadlineExceeded, the writer then goes on;
  /// Reason::kWriterClosed; or the error for which the writer gave up.
  void Flush(std::chrono::milliseconds timeout = std::chrono::seconds(30));

  /// Waits until everything is committed and the gateway has noted that the writer
  /// ends. Log fails from the call on. Throws like Flush; after kDeadlineExceeded the
  /// writer goes on in the background, and Finish may be called again.
  void Finish(std::chrono::milliseconds timeout = std::chrono::seconds(30));

  /// Drops the writer without finishing it. What is not acknowledged is lost to this
  /// process; a later writer with the same ids continues. Idempotent.
  void Close();

  [[nodiscard]] WriterStatus Status() const;

 private:
  friend class Client;
  class Threads;
  explicit Writer(std::unique_ptr<Threads> threads);

  std::unique_ptr<Threads> threads_;
};

}  // namespace headrace
