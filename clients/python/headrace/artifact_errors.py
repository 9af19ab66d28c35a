"""Failed transfers: what the gateway said, and whether trying again may help."""

from typing import Final

import grpc

from headrace.calls import gateway_error
from headrace.errors import GatewayError

_RETRY_CODES: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.UNKNOWN,  # a proxy that gave up
        grpc.StatusCode.CANCELLED,  # a gateway that is going away
    }
)


class ArtifactError(GatewayError):
    """An artifact cannot be stored, read or found; see GatewayError for the attributes."""


class FileChangedError(ArtifactError):
    """The file was changed while it was being stored; nothing of it is visible."""


def artifact_error(error: grpc.RpcError) -> ArtifactError:
    """Read a failed call's status and its details."""
    known = gateway_error(error)
    return ArtifactError(
        error.details() or "the call failed",
        reason=known.reason,
        metadata=known.metadata,
        retry=error.code() in _RETRY_CODES,
        retry_after_s=known.retry_after_s,
    )
