"""Both servers in one directory, which one gateway uses at a time."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from gateway.embedded.postgres import EmbeddedPostgres
from gateway.embedded.processes import DirectoryInUseError, EmbeddedError
from gateway.embedded.s3 import EmbeddedS3


class Embedded:
    """Both servers in one directory, which one gateway uses at a time."""

    def __init__(self, directory: Path) -> None:
        """Lock the directory.

        Raises:
            DirectoryInUseError: another gateway uses it.
            EmbeddedError: it cannot be made.
        """
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._lock = (directory / "lock").open("a+")
        except OSError as error:
            raise EmbeddedError(f"{directory} cannot be used: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "unknown"
            self._lock.close()
            raise DirectoryInUseError(f"{directory} is in use by process {holder}") from None
        self._lock.truncate(0)
        self._lock.write(f"{os.getpid()}\n")
        self._lock.flush()
        self.postgres = EmbeddedPostgres(directory)
        self.s3 = EmbeddedS3(directory)

    def start(self) -> Self:
        """Start both, or those that have ended since. Idempotent."""
        self.postgres.start()
        self.s3.start()
        return self

    def stop(self) -> None:
        """Stop both and unlock the directory. Idempotent."""
        self.s3.stop()
        self.postgres.stop()
        self._lock.close()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


@contextlib.contextmanager
def reach(directory: Path) -> Iterator[str]:
    """Yield the DSN of a directory's PostgreSQL, starting it unless a gateway runs it already.

    Raises:
        EmbeddedError: it does not start.
    """
    try:
        embedded = Embedded(directory)
    except DirectoryInUseError:
        yield EmbeddedPostgres(directory).socket_dsn
        return
    try:
        yield embedded.postgres.start().socket_dsn
    finally:
        embedded.stop()


@contextlib.contextmanager
def reach_stores(directory: Path) -> Iterator[tuple[EmbeddedPostgres, EmbeddedS3]]:
    """Yield both servers of a directory, running, whether a gateway runs them or not.

    Raises:
        EmbeddedError: one does not start.
    """
    try:
        embedded = Embedded(directory)
    except DirectoryInUseError:
        yield EmbeddedPostgres(directory), EmbeddedS3(directory)
        return
    with embedded:
        yield embedded.postgres, embedded.s3
