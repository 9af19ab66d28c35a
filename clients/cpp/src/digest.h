/// SHA-256, and how the contract divides a file into parts.
#pragma once

#include <openssl/evp.h>

#include <cstddef>
#include <cstdint>
#include <istream>
#include <memory>
#include <string>
#include <string_view>

namespace headrace {

inline constexpr std::size_t kDigestBytes = 32;
inline constexpr std::uint64_t kMebibyte = 1U << 20U;
/// Larger files go in parts.
inline constexpr std::uint64_t kSingleBytesMax = 16 * kMebibyte;
/// What one message carries.
inline constexpr std::size_t kChunkBytes = 256U << 10U;

/// Hashes what it is given, piece by piece.
class Sha256 {
 public:
  Sha256();
  void Update(std::string_view bytes);
  /// Returns the 32 bytes and begins anew.
  std::string Finish();

 private:
  struct Free {
    void operator()(EVP_MD_CTX* context) const { EVP_MD_CTX_free(context); }
  };
  std::unique_ptr<EVP_MD_CTX, Free> context_;
};

/// The size of each part but the last; it follows from the file's size alone.
std::uint64_t PartSize(std::uint64_t size);

/// Reads exactly so many bytes and returns their SHA-256; empty when there are fewer.
std::string Sha256Of(std::istream& content, std::uint64_t size);

}  // namespace headrace
