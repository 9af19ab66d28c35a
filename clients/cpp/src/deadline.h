/// Points in time at which waiting ends.
#pragma once

#include <algorithm>
#include <chrono>

namespace headrace {

/// Now plus `timeout`, which may be as long as can be.
template <typename Clock>
typename Clock::time_point After(std::chrono::milliseconds timeout) {
  constexpr std::chrono::milliseconds kEver = std::chrono::years(100);
  return Clock::now() + std::min(timeout, kEver);
}

}  // namespace headrace
