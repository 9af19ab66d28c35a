#include "key_dictionary.h"

#include <algorithm>
#include <utility>

namespace headrace {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

/// Returns how many bytes the UTF-8 character at the beginning of `text` has; 0 when
/// there is none (RFC 3629: no overlong forms, no surrogates, up to U+10FFFF).
std::size_t CharacterBytes(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) {
    return 1;
  }
  const std::size_t length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC2 || lead > 0xF4 || text.size() < length) {
    return 0;
  }
  for (std::size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) {
      return 0;
    }
  }
  const bool overlong = (lead == 0xE0 && byte(1) < 0xA0) || (lead == 0xF0 && byte(1) < 0x90);
  const bool surrogate = lead == 0xED && byte(1) >= 0xA0;
  const bool beyond = lead == 0xF4 && byte(1) >= 0x90;
  return overlong || surrogate || beyond ? 0 : length;
}

}  // namespace

std::string ValidUtf8(std::string_view text, std::size_t characters_max) {
  std::string valid;
  for (std::size_t count = 0; !text.empty() && count < characters_max; ++count) {
    const std::size_t length = CharacterBytes(text);
    valid += length == 0 ? kReplacement : text.substr(0, length);
    text.remove_prefix(std::max<std::size_t>(length, 1));
  }
  return valid;
}

std::optional<std::uint32_t> KeyDictionary::Define(std::string_view key) {
  std::string sent = ValidUtf8(key, kCharactersMax + 1);
  if (const auto found = indexes_.find(sent); found != indexes_.end()) {
    return found->second;
  }
  if (names_.size() == kKeysMax) {
    return std::nullopt;
  }
  const auto index = static_cast<std::uint32_t>(names_.size());
  names_.push_back(sent);
  indexes_.emplace(std::move(sent), index);
  return index;
}

}  // namespace headrace
