#include <algorithm>
#include <fstream>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "digest.h"
#include "headrace/client.h"
#include "transfer.h"

namespace headrace {
namespace {

constexpr unsigned kPartsInFlight = 4;
/// Completing may read the object back.
constexpr std::chrono::hours kCompleteTimeout{1};

std::ifstream Open(const std::filesystem::path& file) {
  std::ifstream content(file, std::ios::binary);
  if (!content) {
    ThrowFileError(file);
  }
  return content;
}

Error ChangedFile(const std::filesystem::path& file) {
  return {Reason::kDigestMismatch, file.string() + " was changed while it was read"};
}

/// One file on its way to the gateway.
class Upload {
 public:
  Upload(Connection& connection, std::string run_id, std::string path, std::filesystem::path file,
         const TransferOptions& options)
      : connection_(connection),
        run_id_(std::move(run_id)),
        path_(std::move(path)),
        file_(std::move(file)),
        content_type_(options.content_type),
        patience_(options) {}

  Artifact Run() {
    while (true) {
      try {
        size_ = std::filesystem::file_size(file_);
        return size_ <= kSingleBytesMax ? Single() : InParts();
      } catch (const Error& error) {
        patience_.AfterFailure(error);
      }
    }
  }

 private:
  /// Sends a small file in one stream.
  Artifact Single() {
    std::string content(size_, '\0');
    std::ifstream stream = Open(file_);
    if (!stream.read(content.data(), static_cast<std::streamsize>(size_))) {
      throw ChangedFile(file_);
    }
    Sha256 hash;
    hash.Update(content);

    StoppableCall call(connection_, patience_.deadline(), patience_.stop());
    v1::UploadArtifactResponse response;
    const auto writer = connection_.Next().artifacts->UploadArtifact(&call.context, &response);
    v1::UploadArtifactRequest request;
    v1::UploadArtifactHeader* header = request.mutable_header();
    header->set_run_id(run_id_);
    header->set_path(path_);
    header->set_size(size_);
    header->set_digest(hash.Finish());
    header->set_content_type(content_type_);
    bool open = writer->Write(request);  // if one fails, Finish tells why, also when all is well
    for (std::size_t offset = 0; open && offset < content.size(); offset += kChunkBytes) {
      request.set_chunk(content.substr(offset, kChunkBytes));
      open = writer->Write(request);
    }
    writer->WritesDone();
    Check(writer->Finish());
    Artifact artifact = ArtifactOf(response.artifact());
    artifact.deduplicated = response.deduplicated();
    return artifact;
  }

  /// Begins the upload of a large file, or finds it, sends what is missing, completes.
  Artifact InParts() {
    v1::BeginUploadRequest request;
    request.set_run_id(run_id_);
    request.set_path(path_);
    request.set_size(size_);
    request.set_part_sha256s(PartDigests());
    request.set_content_type(content_type_);
    const auto begun = connection_.Unary<v1::BeginUploadResponse>(
        [&](const auto& gateway, auto* context, auto* response) {
          return gateway.artifacts->BeginUpload(context, request, response);
        },
        patience_.deadline());
    if (begun.has_artifact()) {
      Artifact artifact = ArtifactOf(begun.artifact());
      artifact.deduplicated = patience_.backoff.failures() == 0;  // else it may be our own
      return artifact;
    }
    SendParts(begun.upload());
    v1::CompleteUploadRequest complete;
    complete.set_run_id(run_id_);
    complete.set_upload_id(begun.upload().upload_id());
    const auto completed = connection_.UnaryUntil<v1::CompleteUploadResponse>(
        [&](const auto& gateway, auto* context, auto* response) {
          return gateway.artifacts->CompleteUpload(context, complete, response);
        },
        patience_.deadline().value_or(After<std::chrono::system_clock>(kCompleteTimeout)));
    return ArtifactOf(completed.artifact());
  }

  std::string PartDigests() {
    std::ifstream content = Open(file_);
    const std::uint64_t part = PartSize(size_);
    std::string digests;
    for (std::uint64_t offset = 0; offset < size_; offset += part) {
      const std::string digest = Sha256Of(content, std::min(part, size_ - offset));
      if (digest.empty()) {
        throw ChangedFile(file_);
      }
      digests += digest;
    }
    return digests;
  }

  /// Sends the parts that are not stored, several at a time; the first failure ends it.
  void SendParts(const v1::Upload& upload) {
    std::set<std::uint32_t> missing;
    for (std::uint32_t number = 1; number <= upload.part_count(); ++number) {
      missing.insert(missing.end(), number);
    }
    for (const std::uint32_t number : upload.stored_parts()) {
      missing.erase(number);
    }
    std::mutex mutex;  // guards `missing` and what follows
    std::exception_ptr failure;
    bool progress = false;
    std::stop_source stop;
    const std::stop_callback chained(patience_.stop(), [&] { stop.request_stop(); });
    const auto work = [&] {
      std::unique_lock lock(mutex);
      while (!missing.empty() && !failure) {
        const std::uint32_t number = missing.extract(missing.begin()).value();
        lock.unlock();
        std::exception_ptr raised;
        try {
          SendPart(upload, number, stop.get_token());
        } catch (...) {
          raised = std::current_exception();
        }
        lock.lock();
        progress = progress || !raised;
        if (raised && !failure) {
          failure = raised;
          stop.request_stop();
        }
      }
    };
    {
      std::vector<std::jthread> workers;
      const std::size_t count = std::min<std::size_t>(missing.size(), kPartsInFlight);
      for (std::size_t i = 0; i < count; ++i) {
        workers.emplace_back(work);
      }
    }
    if (progress) {
      patience_.backoff.Progress();
    }
    if (failure) {
      std::rethrow_exception(failure);
    }
  }

  void SendPart(const v1::Upload& upload, std::uint32_t number, const std::stop_token& stop) {
    const std::uint64_t offset = (number - 1) * upload.part_size();
    std::uint64_t rest = std::min(upload.part_size(), size_ - offset);
    std::ifstream content = Open(file_);
    content.seekg(static_cast<std::streamoff>(offset));

    StoppableCall call(connection_, patience_.deadline(), stop);
    v1::UploadPartResponse response;
    const auto writer = connection_.Next().artifacts->UploadPart(&call.context, &response);
    v1::UploadPartRequest request;
    v1::UploadPartHeader* header = request.mutable_header();
    header->set_run_id(run_id_);
    header->set_upload_id(upload.upload_id());
    header->set_part_number(number);
    bool open = writer->Write(request);
    while (open && rest > 0) {
      std::string* chunk = request.mutable_chunk();
      chunk->resize(std::min<std::uint64_t>(rest, kChunkBytes));
      if (!content.read(chunk->data(), static_cast<std::streamsize>(chunk->size()))) {
        throw ChangedFile(file_);
      }
      rest -= chunk->size();
      open = writer->Write(request);
    }
    writer->WritesDone();
    Check(writer->Finish());
  }

  Connection& connection_;
  const std::string run_id_;
  const std::string path_;
  const std::filesystem::path file_;
  const std::string content_type_;
  Patience patience_;
  std::uint64_t size_ = 0;
};

}  // namespace

Artifact Client::UploadArtifact(const std::string& run_id, const std::string& path,
                                const std::filesystem::path& file,
                                const TransferOptions& options) const {
  return Upload(*connection_, run_id, path, file, options).Run();
}

}  // namespace headrace
