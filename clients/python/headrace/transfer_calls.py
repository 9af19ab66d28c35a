"""What every transfer stands on: calls that are tried again, connections past the gateway."""

import random
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, Literal

import grpc

from headrace.artifact_errors import ArtifactError, artifact_error
from headrace.direct import DirectConnections
from headrace.v1.artifact_service_pb2_grpc import ArtifactServiceStub

Direct = Literal["auto", "always", "never"]
Progress = Callable[[int], None]
"""Is told how many more bytes are there; a negative number takes some back."""

DIRECT_BYTES_MIN: Final = 64 * 1024 * 1024
"""Smaller files are not worth another connection."""
PART_TRIES: Final = 4
"""Of one part whose bytes arrive damaged, before giving up."""
_BACKOFF_MAX_S: Final = 10.0


def no_progress(_: int) -> None:
    """Tell nobody."""


class TransferCalls:
    """The connection of `Transfers`; see there."""

    def __init__(
        self,
        channel: grpc.Channel,
        *,
        token: str = "",
        parallel: int = 4,
        direct: Direct = "auto",
        patience_s: float = 120.0,
    ) -> None:
        """Prepare; nothing is sent.

        Args:
            channel: to the gateway; stays the caller's.
            token: bearer token; empty: none.
            parallel: parts, or small files, that move at once.
            direct: whether bytes may bypass the gateway. `auto`: those of
                files of 64 MiB and more, while the S3 server can be reached.
            patience_s: how long failures that may pass are tried again
                without any success between them.
        """
        self.stub = ArtifactServiceStub(channel)
        self.metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._parallel = parallel
        self._direct = direct
        self._direct_works = direct != "never"
        self._connections = DirectConnections()
        self._patience_s = patience_s

    def call(self, method: Any, request: Any, *, fresh: Callable[[], Any] | None = None) -> Any:
        """Call, again and again while failures may pass; `fresh` makes the request anew.

        Raises:
            ArtifactError: the gateway refuses, or patience ended.
        """
        waits = Waits(self._patience_s)
        while True:
            try:
                return method(request, metadata=self.metadata)
            except grpc.RpcError as error:
                waits.next(artifact_error(error))
                if fresh is not None:
                    request = fresh()

    def close(self) -> None:
        """Close the connections to S3."""
        self._connections.close()


class Waits:
    """Jittered waits between tries, for as long as patience lasts without success."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self.reset()

    def reset(self) -> None:
        """Note a success."""
        self._deadline = time.monotonic() + self._patience_s
        self._wait_s = 0.1

    def next(self, error: ArtifactError) -> None:
        """Wait, or raise the error when waiting is no use (any more)."""
        if not error.retry or time.monotonic() >= self._deadline:
            raise error
        time.sleep(max(error.retry_after_s, self._wait_s) * random.uniform(0.5, 1.0))
        self._wait_s = min(2 * self._wait_s, _BACKOFF_MAX_S)


def each(work: Callable[[int], None], numbers: list[int], parallel: int) -> None:
    """Do the work for every number, some at a time; the first failure stops the rest."""
    if len(numbers) <= 1:
        for number in numbers:
            work(number)
        return
    with ThreadPoolExecutor(min(parallel, len(numbers))) as executor:
        futures: list[Future[None]] = [executor.submit(work, number) for number in numbers]
        try:
            for future in futures:
                future.result()
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise
