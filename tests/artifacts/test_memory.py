"""The gateway's memory stays bounded, whatever goes through it.

Scaled down, with the bound, unless HEADRACE_ARTIFACTS_FULL=1 (`make artifacts-full`):
then 4 GiB in one file, and 32 files of 256 MiB at a time.
"""

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
from headrace import artifact_rules as rules

from tests.artifacts.conftest import MIB, BucketAccess, Site, open_site

FULL = os.environ.get("HEADRACE_ARTIFACTS_FULL") == "1"
ONE_FILE_BYTES = (4096 if FULL else 320) * MIB
FILES = 32 if FULL else 10
FILE_BYTES = (256 if FULL else 32) * MIB
GROWTH_BYTES_MAX = (256 if FULL else 160) * MIB  # half of what goes through, at most

pytestmark = pytest.mark.timeout(1_800 if FULL else 300)


class Watch:
    """The greatest resident memory of a process while it is watched."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self.before = self.most = self._process.memory_info().rss

    @contextmanager
    def watching(self) -> Iterator["Watch"]:
        """Look every 20 ms."""
        over = threading.Event()

        def look() -> None:
            while not over.wait(0.02):
                self.most = max(self.most, self._process.memory_info().rss)

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield self
        finally:
            over.set()
            thread.join()

    @property
    def growth(self) -> int:
        return self.most - self.before


@pytest.fixture
def plain_site(database_dsn: str, tmp_path: Path, bucket: BucketAccess) -> Iterator[Site]:
    """A gateway with default settings, straight at its S3 server."""
    with open_site(database_dsn, tmp_path / "gateway", bucket) as made:
        yield made


def sparse_random(path: Path, size: int, seed: int) -> Path:
    """Make a file with some random bytes in every part, and holes between."""
    random = np.random.default_rng(seed)
    with path.open("wb") as file:
        for offset in range(0, size, 8 * MIB):
            file.seek(offset)
            file.write(random.bytes(64 * 1024))
        file.truncate(size)
    return path


def digest_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return rules.tree_digest(rules.file_sha256s(file.fileno(), path.stat().st_size, threads=2))


def test_one_large_file_goes_through_in_bounded_memory(plain_site: Site, tmp_path: Path) -> None:
    source = sparse_random(tmp_path / "large", ONE_FILE_BYTES, 1)
    warm_up(plain_site, tmp_path)
    artifacts = plain_site.artifacts(plain_site.create_run())
    watch = Watch(plain_site.gateway.pid)
    with watch.watching():
        began = time.monotonic()
        (stored,) = artifacts.upload(source, "large")
        uploaded = time.monotonic()
        artifacts.download("large", tmp_path / "copy")
        ended = time.monotonic()
    print(
        f"{ONE_FILE_BYTES / MIB:.0f} MiB: up {ONE_FILE_BYTES / MIB / (uploaded - began):.0f} MiB/s,"
        f" down {ONE_FILE_BYTES / MIB / (ended - uploaded):.0f} MiB/s,"
        f" RSS +{watch.growth / MIB:.0f} MiB"
    )
    assert digest_of(tmp_path / "copy").hex() == stored.digest == digest_of(source).hex()
    assert watch.growth < GROWTH_BYTES_MAX


def test_many_files_at_a_time_go_through_in_bounded_memory(
    plain_site: Site, tmp_path: Path
) -> None:
    warm_up(plain_site, tmp_path)
    run_id = plain_site.create_run()
    sources = [sparse_random(tmp_path / f"f{n}", FILE_BYTES, n) for n in range(FILES)]
    watch = Watch(plain_site.gateway.pid)

    def upload(source: Path) -> str:
        client = plain_site.artifacts(run_id, parallel=4, patience_s=600.0)
        return client.upload(source, source.name)[0].digest

    with watch.watching(), ThreadPoolExecutor(FILES) as executor:
        began = time.monotonic()
        digests = list(executor.map(upload, sources))
        took_s = time.monotonic() - began
    total_mib = FILES * FILE_BYTES / MIB
    print(
        f"{FILES} files, {total_mib:.0f} MiB: {total_mib / took_s:.0f} MiB/s,"
        f" RSS +{watch.growth / MIB:.0f} MiB"
    )
    assert digests == [digest_of(source).hex() for source in sources]
    assert watch.growth < GROWTH_BYTES_MAX


def warm_up(site: Site, directory: Path) -> None:
    """Let the gateway import and connect what every transfer needs."""
    path = sparse_random(directory / "warm", 20 * MIB, 99)
    artifacts = site.artifacts(site.create_run("warm"))
    artifacts.upload(path, "warm")
    artifacts.verify("warm")
