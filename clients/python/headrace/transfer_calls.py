"""What every transfer stands on: calls that are made again, work that goes on in parallel."""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, Literal, TypeVar

import grpc

from headrace.artifact_errors import artifact_error
from headrace.calls import retried
from headrace.direct import DirectConnections
from headrace.v1.artifact_service_pb2_grpc import ArtifactServiceStub

Direct = Literal["auto", "always", "never"]
Progress = Callable[[int], None]
"""Is told how many more bytes are there; a negative number takes some back."""

DIRECT_BYTES_MIN: Final = 64 * 1024 * 1024
"""Smaller files are not worth another connection."""
PART_TRIES: Final = 4
"""Of one part whose bytes arrive damaged, before giving up."""

_Result = TypeVar("_Result")


def no_progress(_: int) -> None:
    """Tell nobody."""


class Tally:
    """Progress that can be taken back: of a part or a file that starts again. Thread-safe."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._lock = threading.Lock()
        self._total = 0

    def add(self, more: int) -> None:
        """Count bytes and tell them."""
        with self._lock:
            self._total += more
        self._progress(more)

    def set(self, total: int) -> None:
        """Tell the difference to what was told so far."""
        with self._lock:
            more, self._total = total - self._total, total
        if more:
            self._progress(more)


class TransferCalls:
    """The connections of `Transfers`; see there."""

    def __init__(
        self,
        channel: grpc.Channel,
        *,
        metadata: Iterable[tuple[str, str | bytes]] = (),
        parallel: int = 4,
        direct: Direct = "auto",
        patience_s: float = 120.0,
    ) -> None:
        """Prepare; nothing is sent.

        Args:
            channel: to the gateway; stays the caller's.
            metadata: what every call carries.
            parallel: parts, or small files, that move at once.
            direct: whether bytes may bypass the gateway. `auto`: those of
                files of 64 MiB and more, while the S3 server can be reached.
            patience_s: how long failures that may pass are tried again
                without any success between them.
        """
        self.stub = ArtifactServiceStub(channel)
        self.metadata = tuple(metadata)
        self._parallel = parallel
        self._direct = direct
        self._direct_works = direct != "never"
        self._connections = DirectConnections()
        self._patience_s = patience_s

    def call(self, method: Any, request: Any) -> Any:
        """Call a method with one request, again while the failure may pass.

        Raises:
            ArtifactError: the gateway refuses, or patience ended.
        """
        return self._again(lambda: method(request, metadata=self.metadata))

    def close(self) -> None:
        """Close the connections to S3."""
        self._connections.close()

    def _again(self, attempt: Callable[[], _Result]) -> _Result:
        """Return what an attempt returns, made again while its RpcErrors may pass.

        Raises:
            ArtifactError: the gateway refuses, or patience ended.
        """

        def once() -> _Result:
            try:
                return attempt()
            except grpc.RpcError as error:
                raise artifact_error(error) from error

        return retried(once, patience_s=self._patience_s)

    def _goes_direct(self, size: int) -> bool:
        """Whether a file of `size` bytes should bypass the gateway, as far as is known."""
        wanted = self._direct == "always" or (self._direct == "auto" and size >= DIRECT_BYTES_MIN)
        return wanted and self._direct_works


def each(work: Callable[[int], None], numbers: Iterable[int], parallel: int) -> None:
    """Do the work for every number, some at a time; the first failure stops the rest."""
    with ThreadPoolExecutor(parallel) as executor:
        futures: list[Future[None]] = [executor.submit(work, number) for number in numbers]
        try:
            for future in futures:
                future.result()
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise
