/// From gRPC's status to this library's errors.
#pragma once

#include <grpcpp/grpcpp.h>

#include "headrace/error.h"

namespace headrace {

/// What a failed call is; also of one that ended with OK too early.
Error ErrorOf(const grpc::Status& status);

/// Throws unless the call succeeded.
void Check(const grpc::Status& status);

}  // namespace headrace
