"""What a failed call means for a sender: try again, create the run again, or give up."""

import math
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

import grpc
import grpc.aio


class Remedy(Enum):
    """What to do."""

    RETRY = auto()
    """Open a new stream after a wait."""
    CREATE_RUN = auto()
    """The run is unknown (a database that went back): create it, then retry."""
    GIVE_UP = auto()
    """The same message would fail again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A failed call.

    Attributes:
        remedy: what to do.
        reason: the name of an ErrorReason; empty when the gateway named none.
        text: for people.
        retry_after_s: the least wait the gateway asks for.
    """

    remedy: Remedy
    reason: str
    text: str
    retry_after_s: float


_GIVE_UP_REASONS: Final = frozenset(
    {
        "MALFORMED_MESSAGE",
        "FIELD_REQUIRED",
        "FIELD_INVALID",
        "LIMIT_EXCEEDED",
        "RUN_PURGED",
        "RUN_EXISTS",
        "OPEN_EXPECTED",
        "WRITER_CLAIMED",
        "WRITER_FENCED",
        "WRITER_FINISHED",
        "WRITER_MISMATCH",
        "RESUME_STEP_MISMATCH",
        "COLUMN_LENGTH_MISMATCH",
        "UNAUTHENTICATED",
        "PERMISSION_DENIED",
        "ATTEMPT_NOT_FOUND",
        "EXPERIMENT_DELETED",
        "WORKSPACE_NOT_FOUND",
        "WORKSPACE_ARCHIVED",
    }
)
"""`retry never` of error_reason.proto. METHOD_UNKNOWN is not among them: a
rolling upgrade or a wrong address may be put right while the spool waits."""

_GIVE_UP_CODES: Final = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
    }
)
"""Where no ErrorInfo tells (a proxy answered)."""


def failure_of(error: grpc.aio.AioRpcError) -> Failure:
    """Reads the status and its details."""
    reason, retry_after_s = _details(error)
    code = error.code()
    if reason == "RUN_NOT_FOUND":
        remedy = Remedy.CREATE_RUN
    elif reason in _GIVE_UP_REASONS or (not reason and code in _GIVE_UP_CODES):
        remedy = Remedy.GIVE_UP
    else:
        remedy = Remedy.RETRY
    return Failure(
        remedy=remedy,
        reason=reason,
        text=f"{reason or code.name}: {error.details()}",
        retry_after_s=retry_after_s,
    )


def _details(error: grpc.aio.AioRpcError) -> tuple[str, float]:
    # Imported here: most senders never see an error with details.
    from google.protobuf.message import DecodeError  # noqa: PLC0415
    from google.rpc import error_details_pb2, status_pb2  # noqa: PLC0415

    reason, retry_after_s = "", 0.0
    for key, value in error.trailing_metadata() or ():
        if key != "grpc-status-details-bin":
            continue
        try:
            status = status_pb2.Status.FromString(value)
        except (DecodeError, TypeError):
            continue
        for detail in status.details:
            info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
            if detail.Unpack(info):
                reason = info.reason
            elif detail.Unpack(retry):
                delay = retry.retry_delay
                retry_after_s = max(0.0, delay.seconds + delay.nanos / 1e9)
    return reason, retry_after_s if math.isfinite(retry_after_s) else 0.0
