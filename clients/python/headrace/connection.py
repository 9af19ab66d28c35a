"""A connection to a gateway, for whoever waits for answers: stubs, retries, errors."""

from collections.abc import Callable
from types import TracebackType
from typing import Final, Self, TypeVar

import grpc

from headrace.calls import gateway_error, retried
from headrace.channel import call_metadata, open_blocking_channel
from headrace.settings import Settings
from headrace.v1.experiment_service_pb2_grpc import ExperimentServiceStub, WorkspaceServiceStub
from headrace.v1.metric_service_pb2_grpc import MetricServiceStub
from headrace.v1.run_service_pb2_grpc import RunServiceStub

_CALL_TIMEOUT_S: Final = 60.0
_Response = TypeVar("_Response")


class Connection:
    """Calls wait for the gateway while it is away, up to `patience_s`, and raise GatewayError.

    May be shared by threads, not be used across a fork. Close it, or use it as
    a context manager.
    """

    def __init__(self, settings: Settings, *, patience_s: float) -> None:
        self._settings = settings
        self._patience_s = patience_s
        self._metadata = tuple(call_metadata(settings))
        self._channel = open_blocking_channel(settings)
        self._run_service = RunServiceStub(self._channel)
        self._metric_service = MetricServiceStub(self._channel)
        self._experiment_service = ExperimentServiceStub(self._channel)
        self._workspace_service = WorkspaceServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; reads that still run fail."""
        self._channel.close()

    def _call(self, method: Callable[..., _Response], request: object) -> _Response:
        def call() -> _Response:
            try:
                return method(request, metadata=self._metadata, timeout=_CALL_TIMEOUT_S)
            except grpc.RpcError as error:
                raise gateway_error(error) from error

        return retried(call, patience_s=self._patience_s)
