#include "backoff.h"

#include <algorithm>

namespace headrace {
namespace {

Retry RetryOf(Reason reason) {
  switch (reason) {
    case Reason::kSequenceGap:
    case Reason::kUnknownKeyIndex:
    case Reason::kTransferStalled:
    case Reason::kDigestMismatch:
    case Reason::kUploadNotFound:
    case Reason::kUploadIncomplete:
      return Retry::kResume;
    case Reason::kOverloaded:
    case Reason::kStoreUnavailable:
    case Reason::kDraining:
    case Reason::kInternal:
    case Reason::kBlobStoreUnavailable:
      return Retry::kLater;
    default:
      return Retry::kNever;
  }
}

Retry RetryOf(StatusCode status) {
  switch (status) {
    case StatusCode::kOk:  // a stream that ended too early
    case StatusCode::kCancelled:
    case StatusCode::kUnknown:
    case StatusCode::kDeadlineExceeded:
    case StatusCode::kResourceExhausted:
    case StatusCode::kAborted:
    case StatusCode::kInternal:
    case StatusCode::kUnavailable:
      return Retry::kLater;
    default:
      return Retry::kNever;
  }
}

}  // namespace

Retry RetryOf(std::error_code code) {
  if (code.category() == reason_category()) {
    return RetryOf(static_cast<Reason>(code.value()));
  }
  return RetryOf(static_cast<StatusCode>(code.value()));
}

std::optional<std::chrono::milliseconds> Backoff::Next(const Error& error) {
  const Retry retry = RetryOf(error.code());
  if (retry == Retry::kNever || (retry == Retry::kResume && ++resumes_ > kResumesMax)) {
    return std::nullopt;
  }
  const auto wait = std::min(kFirstWait * (1 << std::min(failures_, 10)), kWaitMax);
  ++failures_;
  return std::max(wait / 2 + PartOf(wait / 2), error.retry_after());
}

std::chrono::milliseconds Backoff::PartOf(std::chrono::milliseconds span) {
  return std::chrono::milliseconds(
      std::uniform_int_distribution<std::chrono::milliseconds::rep>(0, span.count())(random_));
}

}  // namespace headrace
