#include <algorithm>
#include <fstream>

#include "digest.h"
#include "headrace/client.h"
#include "transfer.h"

namespace headrace {
namespace {

/// How often an artifact may be replaced while it is read.
constexpr int kContentChangesMax = 3;

/// The SHA-256 of the part that begins at `offset`; empty when the gateway has not told it.
std::string_view DigestOfPart(const v1::Artifact& artifact, std::uint64_t offset) {
  const std::string_view digests = artifact.part_sha256s();
  const std::uint64_t start = offset / artifact.part_size() * kDigestBytes;
  return start < digests.size() ? digests.substr(start, kDigestBytes) : std::string_view();
}

std::uint64_t PartLength(const v1::Artifact& artifact, std::uint64_t offset) {
  return std::min(artifact.part_size(), artifact.size() - offset);
}

/// One artifact on its way to `<file>.part`.
class Download {
 public:
  Download(Connection& connection, std::string run_id, std::string path, std::filesystem::path file,
           const TransferOptions& options)
      : connection_(connection),
        run_id_(std::move(run_id)),
        path_(std::move(path)),
        file_(std::move(file)),
        draft_(file_.string() + ".part"),
        patience_(options) {}

  Artifact Run() {
    int changes = 0;
    bool known = false;
    while (true) {
      const std::uint64_t before = verified_bytes_;
      try {
        if (!known) {
          Stat();
          known = true;
        }
        Rest();
        std::filesystem::rename(draft_, file_);
        return ArtifactOf(artifact_);
      } catch (const Error& error) {
        if (verified_bytes_ > before) {
          patience_.backoff.Progress();
        }
        if (error.code() == Reason::kArtifactChanged && ++changes <= kContentChangesMax) {
          known = false;
          continue;
        }
        patience_.AfterFailure(error);
      }
    }
  }

 private:
  /// Asks for the artifact, and finds how much of it an earlier attempt has left.
  void Stat() {
    v1::StatArtifactRequest request;
    request.set_run_id(run_id_);
    request.set_path(path_);
    const auto response = connection_.Unary<v1::StatArtifactResponse>(
        [&](const auto& gateway, auto* context, auto* answer) {
          return gateway.artifacts->StatArtifact(context, request, answer);
        },
        patience_.deadline());
    artifact_ = response.artifact();
    verified_bytes_ = 0;
    std::ifstream draft(draft_, std::ios::binary);
    while (draft && verified_bytes_ < artifact_.size()) {
      const std::uint64_t length = PartLength(artifact_, verified_bytes_);
      const std::string digest = Sha256Of(draft, length);
      if (digest.empty() || digest != DigestOfPart(artifact_, verified_bytes_)) {
        return;
      }
      verified_bytes_ += length;
    }
  }

  /// Appends what follows the verified bytes.
  void Rest() {
    std::ofstream(draft_, std::ios::app | std::ios::binary).close();  // make it
    std::filesystem::resize_file(draft_, verified_bytes_);
    if (verified_bytes_ == artifact_.size()) {
      return;
    }
    std::ofstream draft(draft_, std::ios::app | std::ios::binary);
    v1::DownloadArtifactRequest request;
    request.set_run_id(run_id_);
    request.set_path(path_);
    request.set_offset(verified_bytes_);
    request.set_digest(artifact_.digest());
    StoppableCall call(connection_, patience_.deadline(), patience_.stop());
    const auto reader = connection_.Next().artifacts->DownloadArtifact(&call.context, request);
    Sha256 hash;
    std::uint64_t in_part = 0;
    v1::DownloadArtifactResponse response;
    while (reader->Read(&response)) {
      Take(response.chunk(), draft, hash, in_part);
    }
    Check(reader->Finish());
    if (verified_bytes_ < artifact_.size()) {
      throw Error(StatusCode::kUnavailable, "the download ended early");
    }
  }

  /// Writes a chunk, and counts each part as verified when it is.
  void Take(std::string_view chunk, std::ofstream& draft, Sha256& hash, std::uint64_t& in_part) {
    while (!chunk.empty()) {
      const std::uint64_t length = PartLength(artifact_, verified_bytes_);
      const std::string_view piece = chunk.substr(0, length - in_part);
      if (piece.empty()) {
        throw Error(StatusCode::kDataLoss, "the download has too many bytes");
      }
      draft.write(piece.data(), static_cast<std::streamsize>(piece.size()));
      hash.Update(piece);
      in_part += piece.size();
      chunk.remove_prefix(piece.size());
      if (in_part == length) {
        if (hash.Finish() != DigestOfPart(artifact_, verified_bytes_)) {
          throw Error(
              Reason::kDigestMismatch,
              "the part at byte " + std::to_string(verified_bytes_) + " was damaged on the way");
        }
        if (!draft.flush()) {
          ThrowFileError(draft_);
        }
        verified_bytes_ += length;
        in_part = 0;
      }
    }
  }

  Connection& connection_;
  const std::string run_id_;
  const std::string path_;
  const std::filesystem::path file_;
  const std::filesystem::path draft_;
  Patience patience_;
  v1::Artifact artifact_;
  std::uint64_t verified_bytes_ = 0;  // at the draft's beginning
};

}  // namespace

Artifact Client::DownloadArtifact(const std::string& run_id, const std::string& path,
                                  const std::filesystem::path& file,
                                  const TransferOptions& options) const {
  return Download(*connection_, run_id, path, file, options).Run();
}

}  // namespace headrace
