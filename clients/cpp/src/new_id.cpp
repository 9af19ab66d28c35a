#include <chrono>
#include <cstdint>
#include <iomanip>
#include <random>
#include <sstream>

#include "headrace/run.h"

namespace headrace {

std::string NewId() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  const auto milliseconds = static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::milliseconds>(now).count());
  std::random_device device;  // the system's, not a seeded sequence
  std::uniform_int_distribution<std::uint64_t> random;
  // RFC 9562: 48 bits of time, version 7, 12 random bits; variant 2, 62 random bits.
  const std::uint64_t high = milliseconds << 16U | 0x7000U | (random(device) & 0xFFFU);
  const std::uint64_t low = 2ULL << 62U | random(device) >> 2U;
  std::ostringstream id;
  id << std::hex << std::setfill('0') << std::setw(16) << high << std::setw(16) << low;
  return id.str();
}

}  // namespace headrace
