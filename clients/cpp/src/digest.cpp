#include "digest.h"

#include <algorithm>
#include <new>
#include <vector>

namespace headrace {
namespace {

constexpr std::uint64_t kSmallPartsUpTo = 1'024 * kMebibyte;
constexpr std::uint64_t kPartsMax = 10'000;

}  // namespace

Sha256::Sha256() : context_(EVP_MD_CTX_new()) {
  if (!context_ || EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr) != 1) {
    throw std::bad_alloc();
  }
}

void Sha256::Update(std::string_view bytes) {
  EVP_DigestUpdate(context_.get(), bytes.data(), bytes.size());
}

std::string Sha256::Finish() {
  std::string digest(kDigestBytes, '\0');
  EVP_DigestFinal_ex(context_.get(), reinterpret_cast<unsigned char*>(digest.data()), nullptr);
  EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr);
  return digest;
}

std::uint64_t PartSize(std::uint64_t size) {
  if (size <= kSmallPartsUpTo) {
    return 16 * kMebibyte;
  }
  std::uint64_t part = 64 * kMebibyte;
  while ((size + part - 1) / part > kPartsMax) {
    part *= 2;
  }
  return part;
}

std::string Sha256Of(std::istream& content, std::uint64_t size) {
  Sha256 hash;
  std::vector<char> buffer(kChunkBytes);
  while (size > 0) {
    const auto wanted = static_cast<std::streamsize>(std::min<std::uint64_t>(size, kChunkBytes));
    if (!content.read(buffer.data(), wanted)) {
      return {};
    }
    hash.Update({buffer.data(), static_cast<std::size_t>(wanted)});
    size -= static_cast<std::uint64_t>(wanted);
  }
  return hash.Finish();
}

}  // namespace headrace
