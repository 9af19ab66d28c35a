/// What can fail.
#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <string>
#include <system_error>

namespace headrace {

/// Why a call failed or a point was rejected.
///
/// The first values are ErrorReason of the contract, documented in
/// protos/headrace/v1/error_reason.proto; those from 1001 on are this library's
/// own. A Reason compares with a std::error_code:
///
///     if (error.code() == headrace::Reason::kRunNotFound) …
enum class Reason {
  kUnspecified = 0,
  kMalformedMessage = 1,
  kFieldRequired = 2,
  kFieldInvalid = 3,
  kLimitExceeded = 4,
  kRunNotFound = 5,
  kRunPurged = 6,
  kRunExists = 7,
  kOpenExpected = 8,
  kWriterClaimed = 9,
  kWriterFenced = 10,
  kWriterFinished = 11,
  kWriterMismatch = 12,
  kResumeStepMismatch = 13,
  kSequenceGap = 14,
  kColumnLengthMismatch = 15,
  kUnknownKeyIndex = 16,
  kKeyInvalid = 17,
  kKeysExhausted = 18,
  kStepOutOfRange = 19,
  kTimeOutOfRange = 20,
  kStepLate = 21,
  kStoreRefused = 22,
  kOverloaded = 23,
  kStoreUnavailable = 24,
  kDraining = 25,
  kUnauthenticated = 26,
  kPermissionDenied = 27,
  kInternal = 28,
  kPageTokenInvalid = 29,
  kAttemptNotFound = 30,
  kMethodUnknown = 31,
  kArtifactPathInvalid = 32,
  kArtifactPathConflict = 33,
  kArtifactNotFound = 34,
  kArtifactChanged = 35,
  kUploadNotFound = 36,
  kUploadIncomplete = 37,
  kDigestMismatch = 38,
  kTransferStalled = 39,
  kDirectUnavailable = 40,
  kBlobStoreUnavailable = 41,
  kBlobStoreDenied = 42,
  kArtifactsDisabled = 43,
  kParamChanged = 44,
  kFilterInvalid = 45,
  kExperimentNotFound = 46,
  kExperimentExists = 47,
  kExperimentDeleted = 48,
  kWorkspaceNotFound = 49,
  kWorkspaceExists = 50,
  kWorkspaceArchived = 51,
  kRunProtected = 52,
  kFollowerLagged = 53,

  /// Log found the window full, and was told to fail then. Not logged.
  kWindowFull = 1001,
  /// The writer was finished or closed by its user.
  kWriterClosed = 1002,
};

/// The status of a call that failed without a Reason: it did not come from a
/// gateway, but from what stands between, or from a deadline. Values and meanings
/// are gRPC's.
enum class StatusCode {
  kOk = 0,
  kCancelled = 1,
  kUnknown = 2,
  kInvalidArgument = 3,
  kDeadlineExceeded = 4,
  kNotFound = 5,
  kAlreadyExists = 6,
  kPermissionDenied = 7,
  kResourceExhausted = 8,
  kFailedPrecondition = 9,
  kAborted = 10,
  kOutOfRange = 11,
  kUnimplemented = 12,
  kInternal = 13,
  kUnavailable = 14,
  kDataLoss = 15,
  kUnauthenticated = 16,
};

/// Messages of these codes are the contract's names: `RUN_NOT_FOUND`.
const std::error_category& reason_category() noexcept;
/// Messages of these codes are gRPC's names: `UNAVAILABLE`.
const std::error_category& status_category() noexcept;

std::error_code make_error_code(Reason reason) noexcept;
std::error_code make_error_code(StatusCode status) noexcept;

/// A failure that the gateway reported, or a call that did not reach it.
///
/// `code()` is a Reason when the gateway gave one that this version knows, else a
/// StatusCode. Local files fail with other std::system_error, impossible options
/// with std::invalid_argument.
class Error : public std::system_error {
 public:
  using Metadata = std::map<std::string, std::string>;

  Error(std::error_code code, const std::string& message, Metadata metadata = {},
        std::chrono::milliseconds retry_after = {});

  /// kUnspecified when the failure has none.
  [[nodiscard]] Reason reason() const noexcept;

  /// The offending `field`, `value` and `limit`, where they apply.
  [[nodiscard]] const Metadata& metadata() const noexcept { return *metadata_; }

  /// How long the gateway asked to wait at least before the next attempt; 0: it did not.
  [[nodiscard]] std::chrono::milliseconds retry_after() const noexcept { return retry_after_; }

 private:
  std::shared_ptr<const Metadata> metadata_;  // copying an exception must not throw
  std::chrono::milliseconds retry_after_;
};

}  // namespace headrace

template <>
struct std::is_error_code_enum<headrace::Reason> : std::true_type {};
template <>
struct std::is_error_code_enum<headrace::StatusCode> : std::true_type {};
