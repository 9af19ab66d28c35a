"""Downloads: a file appears whole and verified or not at all, whoever else wants it there."""

import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from tests.artifacts.conftest import MIB, Site
from tests.artifacts.test_faults import refusal
from tests.support.s3_faults import Fault, S3Faults
from tests.support.waiting import eventually

Make = Callable[..., Path]

DOWNLOADING_CLIENT = """
import sys
from pathlib import Path
import grpc
from headrace.transfers import Transfers
address, run_id, target = sys.argv[1:]
with grpc.insecure_channel(address) as channel, Transfers(channel, direct="never") as transfers:
    transfers.download(run_id, "a", Path(target))
"""


def test_a_killed_download_is_continued_by_another_process(
    site: Site, make_file: Make, faults: S3Faults, tmp_path: Path
) -> None:
    run_id, source, target = site.create_run(), make_file(64 * MIB), tmp_path / "out" / "b"
    site.artifacts(run_id).upload(source, "a")
    faults.faults.append(Fault(method="GET", delay_s=0.001))
    client = subprocess.Popen(
        [sys.executable, "-c", DOWNLOADING_CLIENT, site.gateway.address, run_id, str(target)]
    )

    def half_there() -> bool:
        halves = list(target.parent.glob(".b.*.part"))
        return bool(halves) and halves[0].stat().st_blocks * 512 > 24 * MIB

    eventually(half_there, "some of the download")
    client.send_signal(signal.SIGKILL)
    client.wait()
    assert not target.exists()
    faults.faults.clear()
    told: list[int] = []
    site.artifacts(run_id).download("a", target, progress=told.append)
    assert target.read_bytes() == source.read_bytes()
    assert sum(told) == 64 * MIB
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("direct", ["never", "always"])
def test_bytes_that_arrive_damaged_are_read_again(
    site: Site, make_file: Make, faults: S3Faults, tmp_path: Path, direct: str
) -> None:
    run_id, source = site.create_run(), make_file(20 * MIB)
    site.artifacts(run_id).upload(source, "a")
    faults.seen.clear()
    faults.faults.append(Fault(method="GET", damage=True, times=1))
    written = site.artifacts(run_id, direct=direct).download("a", tmp_path / "b")
    assert written.read_bytes() == source.read_bytes()
    assert len(faults.requests("GET")) == 3  # two parts, one of them twice


def test_content_that_is_stored_damaged_never_becomes_a_file(
    site: Site, make_file: Make, faults: S3Faults, tmp_path: Path
) -> None:
    run_id, source = site.create_run(), make_file(20 * MIB)
    site.artifacts(run_id).upload(source, "a")
    faults.faults.append(Fault(method="GET", damage=True))
    error = refusal(lambda: site.artifacts(run_id).download("a", tmp_path / "b"))
    assert error.reason == "DIGEST_MISMATCH"
    assert "stored is damaged" in str(error)
    assert not (tmp_path / "b").exists()
    assert refusal(lambda: site.artifacts(run_id).verify("a")).reason == "DIGEST_MISMATCH"


def test_a_denied_read_names_bucket_permission_and_remedy(
    site: Site, make_file: Make, faults: S3Faults, tmp_path: Path
) -> None:
    run_id = site.create_run()
    site.artifacts(run_id).upload(make_file(1_000), "a")
    faults.faults.append(Fault(method="GET", status=403, code="AccessDenied"))
    error = refusal(lambda: site.artifacts(run_id).download("a", tmp_path / "b"))
    assert error.reason == "BLOB_STORE_DENIED"
    assert error.metadata["bucket"] == site.bucket.bucket
    assert "grant s3:GetObject" in str(error)


def test_the_ranks_of_a_job_may_download_to_one_target(
    site: Site, make_file: Make, faults: S3Faults, tmp_path: Path
) -> None:
    run_id, source, target = site.create_run(), make_file(20 * MIB), tmp_path / "shared" / "b"
    site.artifacts(run_id).upload(source, "a")
    clients = [site.artifacts(run_id) for _ in range(4)]
    with ThreadPoolExecutor(4) as executor:
        list(executor.map(lambda client: client.download("a", target), clients))
    assert target.read_bytes() == source.read_bytes()
    assert list(target.parent.iterdir()) == [target]
    assert len(faults.reads()) == 2  # one of them read the two parts


def test_a_file_that_is_there_already_is_not_read_again(
    site: Site, make_file: Make, faults: S3Faults, tmp_path: Path
) -> None:
    run_id, source, target = site.create_run(), make_file(1_000), tmp_path / "b"
    artifacts = site.artifacts(run_id)
    artifacts.upload(source, "a")
    target.write_bytes(b"something else")
    artifacts.download("a", target)
    assert target.read_bytes() == source.read_bytes()
    faults.seen.clear()
    artifacts.download("a", target)
    assert faults.reads() == []


def test_a_directory_that_is_there_takes_the_file_under_its_own_name(
    site: Site, make_file: Make, tmp_path: Path
) -> None:
    artifacts, source = site.artifacts(site.create_run()), make_file(1_000)
    artifacts.upload(source, "models/last.pt")
    assert artifacts.download("models/last.pt", tmp_path) == tmp_path / "last.pt"
    assert (tmp_path / "last.pt").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("name", ["x" * 250, "ü" * 125])
def test_the_longest_names_can_be_downloaded(
    site: Site, make_file: Make, tmp_path: Path, name: str
) -> None:
    artifacts, source = site.artifacts(site.create_run()), make_file(1_000)
    artifacts.upload(source, name)
    assert artifacts.download(name, tmp_path / "out").read_bytes() == source.read_bytes()
    artifacts.download(name, tmp_path / name)
    assert (tmp_path / name).read_bytes() == source.read_bytes()


def test_a_range_beyond_the_end_is_refused_and_an_empty_one_is_not(
    site: Site, make_file: Make
) -> None:
    from headrace.v1 import artifact_service_pb2 as pb

    run_id = site.create_run()
    site.artifacts(run_id).upload(make_file(10), "a")
    transfers = site.transfers(patience_s=0)

    def read(offset: int) -> bytes:
        request = pb.DownloadArtifactRequest(run_id=run_id, path="a", offset=offset)
        stream = transfers.call(transfers.stub.DownloadArtifact, request)
        return b"".join(message.chunk for message in stream)

    assert read(10) == b""
    assert len(read(3)) == 7
    with pytest.raises(Exception, match="beyond the artifact's 10 bytes"):
        read(11)
    request = pb.DownloadArtifactRequest(run_id=run_id, path="a", digest=b"short")
    stream = transfers.stub.DownloadArtifact(request)
    with pytest.raises(Exception, match="digest must have 32 bytes"):
        next(stream)
    assert partial(transfers.stat, run_id, "a")().size == 10
