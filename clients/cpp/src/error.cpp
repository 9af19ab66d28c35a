#include "headrace/error.h"

#include <array>
#include <string_view>
#include <utility>

#include "headrace/v1/error_reason.pb.h"

namespace headrace {
namespace {

constexpr std::string_view kReasonPrefix = "ERROR_REASON_";

class ReasonCategory final : public std::error_category {
 public:
  [[nodiscard]] const char* name() const noexcept override { return "headrace"; }
  [[nodiscard]] std::string message(int value) const override {
    switch (static_cast<Reason>(value)) {
      case Reason::kWindowFull:
        return "WINDOW_FULL";
      case Reason::kWriterClosed:
        return "WRITER_CLOSED";
      default:
        break;
    }
    const std::string& name = v1::ErrorReason_Name(value);
    return name.empty() ? std::to_string(value) : name.substr(kReasonPrefix.size());
  }
};

class StatusCategory final : public std::error_category {
 public:
  [[nodiscard]] const char* name() const noexcept override { return "grpc"; }
  [[nodiscard]] std::string message(int value) const override {
    static constexpr std::array kNames{"OK",
                                       "CANCELLED",
                                       "UNKNOWN",
                                       "INVALID_ARGUMENT",
                                       "DEADLINE_EXCEEDED",
                                       "NOT_FOUND",
                                       "ALREADY_EXISTS",
                                       "PERMISSION_DENIED",
                                       "RESOURCE_EXHAUSTED",
                                       "FAILED_PRECONDITION",
                                       "ABORTED",
                                       "OUT_OF_RANGE",
                                       "UNIMPLEMENTED",
                                       "INTERNAL",
                                       "UNAVAILABLE",
                                       "DATA_LOSS",
                                       "UNAUTHENTICATED"};
    const auto index = static_cast<std::size_t>(value);
    return index < kNames.size() ? kNames[index] : std::to_string(value);
  }
};

}  // namespace

const std::error_category& reason_category() noexcept {
  static const ReasonCategory category;
  return category;
}

const std::error_category& status_category() noexcept {
  static const StatusCategory category;
  return category;
}

std::error_code make_error_code(Reason reason) noexcept {
  return {static_cast<int>(reason), reason_category()};
}

std::error_code make_error_code(StatusCode status) noexcept {
  return {static_cast<int>(status), status_category()};
}

Error::Error(std::error_code code, const std::string& message, Metadata metadata,
             std::chrono::milliseconds retry_after)
    : std::system_error(code, message),
      metadata_(std::make_shared<const Metadata>(std::move(metadata))),
      retry_after_(retry_after) {}

Reason Error::reason() const noexcept {
  return code().category() == reason_category() ? static_cast<Reason>(code().value())
                                                : Reason::kUnspecified;
}

}  // namespace headrace
