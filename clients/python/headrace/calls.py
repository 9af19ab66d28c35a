"""Calls that answer: what a failed one means, and how long it is tried again."""

import math
from collections.abc import Callable
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay
from tenacity.wait import wait_random_exponential

from headrace.errors import GatewayError

_Result = TypeVar("_Result")
_BACKOFF: Final = wait_random_exponential(multiplier=0.1, max=5.0)


def gateway_error(error: grpc.RpcError) -> GatewayError:
    """Return a failed call as an exception of this package."""
    code: grpc.StatusCode = error.code()
    reason, metadata, retry_after_s = "", {}, 0.0
    trailers: Any = error.trailing_metadata() or ()
    for key, value in trailers:
        if key != "grpc-status-details-bin":
            continue
        try:
            details = status_pb2.Status.FromString(value).details
        except DecodeError:
            continue  # something between the gateway and us wrote it
        for detail in details:
            info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
            if detail.Unpack(info):
                reason, metadata = info.reason, dict(info.metadata)
            elif detail.Unpack(retry):
                retry_after_s = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    return GatewayError(
        error.details() or code.name,
        reason=reason or code.name,
        metadata=metadata,
        retry=code is grpc.StatusCode.UNAVAILABLE,
        retry_after_s=retry_after_s if math.isfinite(retry_after_s) else 0.0,
    )


def retried(call: Callable[[], _Result], *, patience_s: float) -> _Result:
    """Return what a call returns, made again while the gateway is UNAVAILABLE.

    Args:
        call: raises GatewayError; may be made any number of times.
        patience_s: after this much time the last error is raised.

    Raises:
        GatewayError: the call failed for good, or for too long.
    """
    return Retrying(
        retry=retry_if_exception(lambda error: isinstance(error, GatewayError) and error.retry),
        stop=stop_after_delay(patience_s),
        wait=_wait_s,
        reraise=True,
    )(call)


def _wait_s(state: RetryCallState) -> float:
    """Return a jittered, growing wait: at least what the gateway asks for."""
    asked = 0.0
    if state.outcome is not None:
        error = state.outcome.exception()
        if isinstance(error, GatewayError):
            asked = error.retry_after_s
    return asked + _BACKOFF(state)
