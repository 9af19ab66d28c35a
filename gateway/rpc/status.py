"""The one translation of domain errors into gRPC statuses.

Every failure carries exactly one google.rpc.ErrorInfo (domain `headrace.dev`,
reason = the name of a `Reason`), and a RetryInfo when the caller should wait,
both in the trailing metadata `grpc-status-details-bin`.
"""

from dataclasses import dataclass
from typing import Final

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status as StatusMessage

from gateway.domain.errors import HeadraceError, Reason

ERROR_DOMAIN: Final = "headrace.dev"
DETAILS_KEY: Final = "grpc-status-details-bin"
_MESSAGE_CHARACTERS_MAX: Final = 500  # percent-encoded it must fit the 8 kB of all metadata

_CODES: Final[dict[Reason, grpc.StatusCode]] = {
    Reason.MALFORMED_MESSAGE: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.FIELD_REQUIRED: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.FIELD_INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.LIMIT_EXCEEDED: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.RUN_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.RUN_PURGED: grpc.StatusCode.NOT_FOUND,
    Reason.RUN_EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    Reason.OPEN_EXPECTED: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.WRITER_CLAIMED: grpc.StatusCode.ALREADY_EXISTS,
    Reason.WRITER_FENCED: grpc.StatusCode.ABORTED,
    Reason.WRITER_FINISHED: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.WRITER_MISMATCH: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.RESUME_STEP_MISMATCH: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.SEQUENCE_GAP: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.COLUMN_LENGTH_MISMATCH: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.UNKNOWN_KEY_INDEX: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.OVERLOADED: grpc.StatusCode.UNAVAILABLE,
    Reason.STORE_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Reason.DRAINING: grpc.StatusCode.UNAVAILABLE,
    Reason.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    Reason.PERMISSION_DENIED: grpc.StatusCode.PERMISSION_DENIED,
    Reason.INTERNAL: grpc.StatusCode.INTERNAL,
    Reason.PAGE_TOKEN_INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.ATTEMPT_NOT_FOUND: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.METHOD_UNKNOWN: grpc.StatusCode.UNIMPLEMENTED,
    Reason.ARTIFACT_PATH_INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.ARTIFACT_PATH_CONFLICT: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.ARTIFACT_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.ARTIFACT_CHANGED: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.UPLOAD_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.UPLOAD_INCOMPLETE: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.DIGEST_MISMATCH: grpc.StatusCode.DATA_LOSS,
    Reason.TRANSFER_STALLED: grpc.StatusCode.ABORTED,
    Reason.DIRECT_UNAVAILABLE: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.BLOB_STORE_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Reason.BLOB_STORE_DENIED: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.ARTIFACTS_DISABLED: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.PARAM_CHANGED: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.FILTER_INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.EXPERIMENT_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.EXPERIMENT_EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    Reason.EXPERIMENT_DELETED: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.WORKSPACE_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.WORKSPACE_EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    Reason.WORKSPACE_ARCHIVED: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.RUN_PROTECTED: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.FOLLOWER_LAGGED: grpc.StatusCode.ABORTED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What a failed call ends with: the arguments of `context.abort`."""

    code: grpc.StatusCode
    message: str
    trailers: tuple[tuple[str, bytes], ...]


def status_of(error: HeadraceError) -> Status:
    """Return the status of an error. Reasons that only reject points are INVALID_ARGUMENT."""
    code = _CODES.get(error.reason, grpc.StatusCode.INVALID_ARGUMENT)
    message = error.message[:_MESSAGE_CHARACTERS_MAX]
    details = [ErrorInfo(reason=error.reason.name, domain=ERROR_DOMAIN, metadata=error.metadata)]
    packed = [_packed(detail) for detail in details]
    if error.retry_after_ms is not None:
        delay = Duration()
        delay.FromMilliseconds(error.retry_after_ms)
        packed.append(_packed(RetryInfo(retry_delay=delay)))
    whole = StatusMessage(code=code.value[0], message=message, details=packed)
    return Status(code=code, message=message, trailers=((DETAILS_KEY, whole.SerializeToString()),))


def _packed(message: ErrorInfo | RetryInfo) -> AnyMessage:
    any_message = AnyMessage()
    any_message.Pack(message)
    return any_message
