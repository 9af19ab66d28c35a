/// A writer's metric keys and the indexes that stand for them on the wire.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace headrace {

/// Grows only. Not for several threads at a time.
///
/// Keys are judged by the gateway. But one that is not UTF-8 gets U+FFFD, and one that
/// is too long is cut to what is still too long, but fits a message.
class KeyDictionary {
 public:
  static constexpr std::size_t kKeysMax = 100'000;
  static constexpr std::size_t kCharactersMax = 250;

  /// Returns the key's index, defining it if need be; nothing when none is left.
  std::optional<std::uint32_t> IndexOf(std::string_view key) {
    const auto found = indexes_.find(key);
    return found != indexes_.end() ? found->second : Define(key);
  }

  /// The keys as they are sent, by index.
  [[nodiscard]] const std::vector<std::string>& names() const { return names_; }

 private:
  struct Hash : std::hash<std::string_view> {
    using is_transparent = void;
  };

  std::optional<std::uint32_t> Define(std::string_view key);

  std::unordered_map<std::string, std::uint32_t, Hash, std::equal_to<>> indexes_;
  std::vector<std::string> names_;
};

/// Returns `text` with U+FFFD for each byte that is no part of a UTF-8 character, and
/// no more than its first `characters_max` characters.
std::string ValidUtf8(std::string_view text, std::size_t characters_max);

}  // namespace headrace
