/// Times of the wire as times of the library.
#pragma once

#include <google/protobuf/timestamp.pb.h>

#include <chrono>

#include "headrace/run.h"

namespace headrace {

inline Time TimeOf(const google::protobuf::Timestamp& stamp) {
  return Time(std::chrono::seconds(stamp.seconds()) +
              std::chrono::microseconds(stamp.nanos() / 1'000));
}

}  // namespace headrace
