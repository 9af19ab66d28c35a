#include "status.h"

#include <string>
#include <utility>

#include "headrace/v1/error_reason.pb.h"
#include "status_details.pb.h"

namespace headrace {
namespace {

/// Whether `detail` is a google.rpc message of this name; then `message` is it.
template <typename Message>
bool Unpack(const google::protobuf::Any& detail, const std::string& name, Message& message) {
  return detail.type_url().ends_with("/google.rpc." + name) &&
         message.ParseFromString(detail.value());
}

}  // namespace

Error ErrorOf(const grpc::Status& status) {
  std::error_code code = make_error_code(static_cast<StatusCode>(status.error_code()));
  std::string message = status.error_message();
  Error::Metadata metadata;
  std::chrono::milliseconds retry_after{0};

  status_details::Status details;
  if (details.ParseFromString(status.error_details())) {
    for (const google::protobuf::Any& detail : details.details()) {
      status_details::ErrorInfo info;
      status_details::RetryInfo retry;
      if (Unpack(detail, "ErrorInfo", info)) {
        v1::ErrorReason reason{};
        if (v1::ErrorReason_Parse("ERROR_REASON_" + info.reason(), &reason)) {
          code = make_error_code(static_cast<Reason>(reason));
        } else {  // of a newer gateway
          message = info.reason() + ": " + message;
        }
        metadata.insert(info.metadata().begin(), info.metadata().end());
      } else if (Unpack(detail, "RetryInfo", retry)) {
        retry_after = std::chrono::seconds(retry.retry_delay().seconds()) +
                      std::chrono::milliseconds(retry.retry_delay().nanos() / 1'000'000);
      }
    }
  }
  return {code, message, std::move(metadata), retry_after};
}

void Check(const grpc::Status& status) {
  if (!status.ok()) {
    throw ErrorOf(status);
  }
}

}  // namespace headrace
