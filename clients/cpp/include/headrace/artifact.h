/// Artifacts: the files of runs.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <optional>
#include <stop_token>
#include <string>
#include <variant>

#include "headrace/run.h"

namespace headrace {

/// A SHA-256.
using Digest = std::array<std::uint8_t, 32>;

/// A file of a run.
struct Artifact {
  std::string run_id{};
  std::string path{};
  std::uint64_t size = 0;  ///< bytes
  Digest digest{};         ///< the SHA-256 tree of the content
  std::string content_type{};
  Time create_time{};
  bool deduplicated = false;  ///< after an upload: the content was there already
};

/// How long a transfer may go on: by default until it is done.
struct TransferOptions {
  std::optional<std::chrono::milliseconds> timeout{};
  std::stop_token stop{};      ///< ends it with StatusCode::kCancelled
  std::string content_type{};  ///< of an upload; default `application/octet-stream`
};

/// What ListArtifacts returns; by default what stands at the run's top.
struct ListArtifactsOptions {
  std::string folder{};
  bool recursive = false;      ///< all artifacts below the folder, and no folders
  std::int32_t page_size = 0;  ///< of one call to the gateway; 0: its default
};

/// A path below which there are artifacts, without a `/` at its end.
struct Folder {
  std::string path{};
};

/// What ListArtifacts found at one path.
using ArtifactEntry = std::variant<Artifact, Folder>;

}  // namespace headrace
