"""Failed transfers: what the gateway said, and whether trying again may help."""

import math
from typing import Any, Final

import grpc

from headrace.errors import HeadraceError

_RETRY_CODES: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.UNKNOWN,  # a proxy that gave up
        grpc.StatusCode.CANCELLED,  # a gateway that is going away
    }
)


class ArtifactError(HeadraceError):
    """An artifact cannot be stored, read or found.

    Attributes:
        reason: the name of an ErrorReason, for example `ARTIFACT_NOT_FOUND`;
            empty when the gateway named none.
        metadata: what the error names, for example `bucket` and `permission`.
        retry: whether the same call may succeed later.
        retry_after_s: the least wait the gateway asks for.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        metadata: dict[str, str] | None = None,
        retry: bool = False,
        retry_after_s: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.metadata = metadata or {}
        self.retry = retry
        self.retry_after_s = retry_after_s


class FileChangedError(ArtifactError):
    """The file was changed while it was being stored; nothing of it is visible."""


def artifact_error(error: grpc.RpcError) -> ArtifactError:
    """Read a failed call's status and its details."""
    # Imported here: most transfers never see an error with details.
    from google.rpc import error_details_pb2, status_pb2  # noqa: PLC0415

    code = error.code()
    text = error.details() or code.name
    reason, metadata, retry_after_s = "", {}, 0.0
    trailers: Any = error.trailing_metadata() or ()
    for key, value in trailers:
        if key != "grpc-status-details-bin":
            continue
        for detail in status_pb2.Status.FromString(value).details:
            info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
            if detail.Unpack(info):
                reason, metadata = info.reason, dict(info.metadata)
            elif detail.Unpack(retry):
                delay_s = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
                retry_after_s = delay_s if math.isfinite(delay_s) and delay_s > 0 else 0.0
    return ArtifactError(
        f"{reason or code.name}: {text}",
        reason=reason,
        metadata=metadata,
        retry=code in _RETRY_CODES,
        retry_after_s=retry_after_s,
    )
