/// Writes training metrics to a Headrace gateway, exactly once, reads them back as
/// columns, and moves artifacts.
///
///     auto client = headrace::Client::Connect("127.0.0.1:7420");
///     auto run = client.CreateRun({.experiment = "digits"});
///     auto writer = client.OpenWriter({.run_id = run.run_id});
///     for (int step = 0; step < 100; ++step) {
///       writer.Log(step, {{"loss", loss}, {"accuracy", accuracy}});
///     }
///     writer.Finish();
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "headrace/artifact.h"
#include "headrace/error.h"
#include "headrace/reading.h"
#include "headrace/run.h"
#include "headrace/writer.h"

namespace headrace {

class Connection;

/// Where a gateway listens unless told otherwise.
inline constexpr std::string_view kDefaultAddress = "127.0.0.1:7420";

/// PEM texts for TLS; what is empty is the system's.
struct TlsOptions {
  std::string root_certificates{};
  std::string certificate_chain{};  ///< the client's own, with private_key
  std::string private_key{};
};

/// How to connect.
struct ConnectOptions {
  std::string token{};              ///< sent with every call, unless empty
  std::optional<TlsOptions> tls{};  ///< for addresses that begin with https://
  /// For calls other than reads, transfers and the streams of writers.
  std::chrono::milliseconds call_timeout = std::chrono::seconds(30);
};

/// Talks to one gateway, or to several that share a database.
///
/// Copies share their connections; writers keep them open too. All methods may be
/// called by any number of threads. They throw Error.
class Client {
 public:
  /// Prepares a client; does not wait for the gateway.
  ///
  /// `addresses` is `host:port` (plain text) or `https://host:port` (TLS), or several
  /// of one kind separated by commas: calls and streams then take turns, past those
  /// that cannot be reached. Throws std::invalid_argument for anything else.
  static Client Connect(std::string_view addresses = kDefaultAddress,
                        const ConnectOptions& options = {});

  /// Creates a run, or returns the one that has this id. Fails with kRunExists when
  /// that one has other policies. Its experiment stays what it is.
  Run CreateRun(const RunOptions& options = {}) const;

  /// Reads a run. Fails with kRunNotFound.
  Run GetRun(const std::string& run_id) const;

  /// Ends a run; `state` is kFinished, kFailed or kKilled. Returns false when a newer
  /// attempt exists: nothing was changed.
  bool FinishRun(const std::string& run_id, std::int32_t attempt = 1,
                 RunState state = RunState::kFinished) const;

  /// Says that the run's job is alive. Not needed while a writer is open.
  void HeartbeatRun(const std::string& run_id) const;

  /// Makes a writer; does not wait for the gateway: failures are reported by Log,
  /// Flush and Finish. Throws std::invalid_argument for impossible options.
  Writer OpenWriter(WriterOptions options) const;

  /// Reads points of a run from one consistent snapshot, ordered by key and rank.
  std::vector<Columns> ReadMetrics(const std::string& run_id,
                                   const ReadOptions& options = {}) const;

  /// Lists the series of a run, ordered by key and rank; all pages.
  std::vector<Series> ListSeries(const std::string& run_id,
                                 const ListSeriesOptions& options = {}) const;

  /// Stores a file under a path of the run, replacing what is there when all of it
  /// has arrived. Resumes after any disconnect, and, called again, after a crash.
  Artifact UploadArtifact(const std::string& run_id, const std::string& path,
                          const std::filesystem::path& file,
                          const TransferOptions& options = {}) const;

  /// Reads an artifact into a file, verified part by part. What has arrived is kept in
  /// `<file>.part`: it resumes after any disconnect, and, called again, after a crash.
  Artifact DownloadArtifact(const std::string& run_id, const std::string& path,
                            const std::filesystem::path& file,
                            const TransferOptions& options = {}) const;

  /// Lists artifacts and folders, ordered by the bytes of their paths; all pages.
  std::vector<ArtifactEntry> ListArtifacts(const std::string& run_id,
                                           const ListArtifactsOptions& options = {}) const;

 private:
  explicit Client(std::shared_ptr<Connection> connection);

  std::shared_ptr<Connection> connection_;
};

}  // namespace headrace
