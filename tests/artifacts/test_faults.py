"""Whatever is killed or damaged: nothing partial is visible, only what is missing goes again."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from headrace import artifact_rules as rules
from headrace.artifact_errors import ArtifactError, FileChangedError, artifact_error
from headrace.direct import DirectConnections
from headrace.v1 import artifact_service_pb2 as pb

from gateway.embedded import EmbeddedS3
from tests.artifacts.conftest import MIB, STALL_TIMEOUT_S, BucketAccess, Site, access_to, open_site
from tests.support.s3_faults import Fault, S3Faults
from tests.support.waiting import eventually

Make = Callable[..., Path]
DEADLINE_S = 60.0

UPLOADING_CLIENT = """
import sys
from pathlib import Path
import grpc
from headrace.transfers import Transfers
address, run_id, source = sys.argv[1:]
with grpc.insecure_channel(address) as channel, Transfers(channel, direct="never") as transfers:
    transfers.upload(run_id, Path(source), "a")
"""


def visible(site: Site, run_id: str) -> list[str]:
    return [entry.path for entry in site.artifacts(run_id).list(recursive=True)]


def refusal(call: Callable[[], object]) -> ArtifactError:
    with pytest.raises(ArtifactError) as caught:
        call()
    return caught.value


def begun(site: Site, run_id: str, source: Path) -> pb.Upload:
    """Begin an upload of a file, or find it."""
    size = source.stat().st_size
    with source.open("rb") as file:
        digests = rules.file_sha256s(file.fileno(), size, threads=1)
    request = pb.BeginUploadRequest(run_id=run_id, path="a", size=size, part_sha256s=digests)
    transfers = site.transfers()
    answer: pb.BeginUploadResponse = transfers.call(transfers.stub.BeginUpload, request)
    return answer.upload


# ---- damaged bytes -----------------------------------------------------------------


@pytest.mark.parametrize("sent", [b"other bytes!", b"short", b"much too long!!", b""])
def test_a_small_file_with_other_bytes_than_its_digest_is_not_stored(
    site: Site, sent: bytes
) -> None:
    run_id = site.create_run()
    digest = hashlib.sha256(b"these bytes.").digest()
    header = pb.UploadArtifactHeader(run_id=run_id, path="a", size=12, digest=digest)

    def messages() -> Iterator[pb.UploadArtifactRequest]:
        yield pb.UploadArtifactRequest(header=header)
        yield pb.UploadArtifactRequest(chunk=sent)

    with pytest.raises(grpc.RpcError) as caught:
        site.transfers().stub.UploadArtifact(messages())
    assert artifact_error(caught.value).reason == "DIGEST_MISMATCH"
    assert visible(site, run_id) == []


@pytest.mark.parametrize("method", ["UploadArtifact", "UploadPart"])
def test_a_message_that_is_none_in_the_middle_of_the_bytes_is_refused_for_good(
    site: Site, make_file: Make, method: str
) -> None:
    run_id, source = site.create_run(), make_file(20 * MIB)
    first: pb.UploadArtifactRequest | pb.UploadPartRequest
    if method == "UploadArtifact":
        small = pb.UploadArtifactHeader(
            run_id=run_id, path="a", size=2_000, digest=hashlib.sha256(bytes(2_000)).digest()
        )
        first = pb.UploadArtifactRequest(header=small)
    else:
        upload = begun(site, run_id, source)
        part = pb.UploadPartHeader(run_id=run_id, upload_id=upload.upload_id, part_number=1)
        first = pb.UploadPartRequest(header=part)
    chunk = pb.UploadPartRequest(chunk=bytes(1_000)).SerializeToString()
    call: Any = site.channel.stream_unary(f"/headrace.v1.ArtifactService/{method}")
    with pytest.raises(grpc.RpcError) as caught:
        call(iter([first.SerializeToString(), chunk, b"\xff" * 40]), timeout=DEADLINE_S)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert artifact_error(caught.value).reason == "MALFORMED_MESSAGE"
    assert visible(site, run_id) == []


def test_a_corrupted_chunk_fails_its_part_and_s3_never_gets_it(
    site: Site, make_file: Make, faults: S3Faults
) -> None:
    run_id, source = site.create_run(), make_file(20 * MIB)
    upload = begun(site, run_id, source)
    header = pb.UploadPartHeader(run_id=run_id, upload_id=upload.upload_id, part_number=1)
    content = bytearray(source.read_bytes()[: 16 * MIB])
    content[7 * MIB] ^= 1

    def messages() -> Iterator[pb.UploadPartRequest]:
        yield pb.UploadPartRequest(header=header)
        for start in range(0, len(content), 262_144):
            yield pb.UploadPartRequest(chunk=bytes(content[start : start + 262_144]))

    with pytest.raises(grpc.RpcError) as caught:
        site.transfers().stub.UploadPart(messages())
    assert artifact_error(caught.value).reason == "DIGEST_MISMATCH"
    assert faults.parts_stored() == []
    assert list(begun(site, run_id, source).stored_parts) == []
    site.artifacts(run_id).upload(source, "a")
    assert site.artifacts(run_id).read("a") == source.read_bytes()


def test_wrong_bytes_that_went_past_the_gateway_never_become_visible(
    site: Site, make_file: Make, bucket: BucketAccess
) -> None:
    run_id, source = site.create_run(), make_file(20 * MIB)
    upload = begun(site, run_id, source)
    transfers = site.transfers()
    signed = transfers.call(
        transfers.stub.SignUploadParts,
        pb.SignUploadPartsRequest(run_id=run_id, upload_id=upload.upload_id, part_numbers=[1, 2]),
    )
    connections = DirectConnections()
    wrong = make_file(20 * MIB)
    refused = False
    with wrong.open("rb") as file:
        for request in signed.requests:
            offset, length = rules.part_range(20 * MIB, request.part_number)
            try:
                connections.put(
                    request.url,
                    request.headers,
                    file,
                    offset=offset,
                    length=length,
                    progress=lambda _: None,
                )
            except Exception:  # a server that checks SHA-256 refuses them at once
                refused = True
    connections.close()
    complete = pb.CompleteUploadRequest(run_id=run_id, upload_id=upload.upload_id)
    error = refusal(lambda: transfers.call(transfers.stub.CompleteUpload, complete))
    assert error.reason == ("UPLOAD_INCOMPLETE" if refused else "DIGEST_MISMATCH")
    assert visible(site, run_id) == []
    site.artifacts(run_id, direct="always").upload(source, "a")
    assert site.artifacts(run_id).read("a") == source.read_bytes()


def test_a_file_that_changes_while_it_is_stored_is_not_stored(
    site: Site, make_file: Make, faults: S3Faults
) -> None:
    run_id, source = site.create_run(), make_file(64 * MIB)
    faults.faults.append(Fault(method="PUT", query="partNumber", delay_s=0.002))

    def change() -> None:
        eventually(lambda: faults.requests("POST", "uploads"), "the upload's beginning")
        with source.open("r+b") as file:
            file.seek(40 * MIB)
            file.write(b"changed")

    changing = threading.Thread(target=change)
    changing.start()
    with pytest.raises(FileChangedError):
        site.artifacts(run_id, parallel=1).upload(source, "a")
    changing.join()
    assert visible(site, run_id) == []


def test_completing_without_all_parts_says_what_is_missing(site: Site, make_file: Make) -> None:
    run_id, source = site.create_run(), make_file(20 * MIB)
    upload = begun(site, run_id, source)
    transfers = site.transfers(patience_s=0)
    complete = pb.CompleteUploadRequest(run_id=run_id, upload_id=upload.upload_id)
    error = refusal(lambda: transfers.call(transfers.stub.CompleteUpload, complete))
    assert error.reason == "UPLOAD_INCOMPLETE"
    assert (error.metadata["part_number"], error.metadata["missing"]) == ("1", "2")


# ---- kills -------------------------------------------------------------------------


def test_a_killed_client_is_continued_by_another_process(
    site: Site, make_file: Make, faults: S3Faults
) -> None:
    run_id, source = site.create_run(), make_file(96 * MIB)
    slow = Fault(method="PUT", query="partNumber", delay_s=0.001)
    faults.faults.append(slow)
    client = subprocess.Popen(
        [sys.executable, "-c", UPLOADING_CLIENT, site.gateway.address, run_id, str(source)]
    )
    eventually(faults.parts_stored, "the first part")
    client.send_signal(signal.SIGKILL)
    client.wait()
    assert visible(site, run_id) == []
    faults.faults.clear()
    # A part in flight is stored whole or not at all: wait until S3 has said its last.
    eventually(lambda: not faults.under_way, "the end of all requests")
    before = set(begun(site, run_id, source).stored_parts)
    assert before
    faults.seen.clear()
    site.artifacts(run_id).upload(source, "a")
    assert sorted(faults.parts_stored()) == [n for n in range(1, 7) if n not in before]
    assert site.artifacts(run_id).read("a") == source.read_bytes()


def test_ctrl_c_ends_put_at_once_and_the_same_command_goes_on(
    site: Site, make_file: Make, faults: S3Faults
) -> None:
    run_id, source = site.create_run(), make_file(96 * MIB)
    command = [sys.executable, "-m", "headrace.cli", "artifacts", "put", run_id, str(source)]
    environment = {**os.environ, "HEADRACE_ADDRESS": site.gateway.address}
    whole = Fault(method="PUT", query="partNumber", times=1)
    slow = Fault(method="PUT", query="partNumber", delay_s=0.5)
    faults.faults += [whole, slow]
    with subprocess.Popen(
        [*command, "--direct", "never"], env=environment, stderr=subprocess.PIPE
    ) as client:
        assert client.stderr is not None
        eventually(faults.parts_stored, "the first part")
        client.send_signal(signal.SIGINT)
        client.wait(30)  # the parts under way would take minutes
        told = client.stderr.read().decode()
    assert client.returncode == 130
    assert told == "headrace: interrupted; the same command goes on from here\n"
    assert visible(site, run_id) == []
    faults.faults.clear()
    slow.delay_s = 0.0  # for what is under way
    subprocess.run([*command, "--direct", "never"], env=environment, check=True)
    assert sorted(faults.parts_stored()) == [1, 2, 3, 4, 5, 6]


def test_a_gateway_killed_while_it_uploads_costs_only_the_parts_in_flight(
    site: Site, make_file: Make, faults: S3Faults
) -> None:
    run_id, source = site.create_run(), make_file(96 * MIB)
    faults.faults.append(Fault(method="PUT", query="partNumber", delay_s=0.001))
    done: list[object] = []
    upload = threading.Thread(
        target=lambda: done.append(site.artifacts(run_id, parallel=2).upload(source, "a"))
    )
    upload.start()
    eventually(lambda: len(faults.parts_stored()) >= 2, "two parts")
    site.gateway.restart()
    upload.join(DEADLINE_S)
    assert done
    # Of those that S3 had, at most the two in flight can have gone twice.
    assert len(faults.parts_stored()) <= 6 + 2
    assert site.artifacts(run_id).read("a") == source.read_bytes()


def test_a_gateway_killed_while_it_sends_costs_a_pause(
    site: Site, make_file: Make, faults: S3Faults, tmp_path: Path
) -> None:
    run_id, source = site.create_run(), make_file(64 * MIB)
    artifacts = site.artifacts(run_id)
    artifacts.upload(source, "a")
    faults.faults.append(Fault(method="GET", delay_s=0.002))
    told: list[int] = []
    download = threading.Thread(
        target=lambda: artifacts.download("a", tmp_path / "b", progress=told.append)
    )
    download.start()
    eventually(lambda: sum(told) > 4 * MIB, "some of the download")
    assert not (tmp_path / "b").exists()
    site.gateway.restart()
    faults.faults.clear()
    download.join(DEADLINE_S)
    assert (tmp_path / "b").read_bytes() == source.read_bytes()


def test_an_interrupted_download_goes_on_where_it_stopped(
    site: Site, make_file: Make, faults: S3Faults, tmp_path: Path
) -> None:
    run_id, source = site.create_run(), make_file(64 * MIB)
    site.artifacts(run_id).upload(source, "a")
    artifacts = site.artifacts(run_id, parallel=1, patience_s=0)
    told: list[int] = []

    def interrupt(more: int) -> None:
        told.append(more)
        if sum(told) > 40 * MIB:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        artifacts.download("a", tmp_path / "b", progress=interrupt)
    assert not (tmp_path / "b").exists()
    faults.seen.clear()
    artifacts.download("a", tmp_path / "b")
    assert len(faults.reads()) == 2  # of four parts
    assert (tmp_path / "b").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("doing", ["upload", "download"])
def test_s3_killed_in_the_middle_is_outlived(
    database_dsn: str, tmp_path: Path, make_file: Make, doing: str
) -> None:
    """This server forgets its multipart uploads: the file in hand starts again, by itself."""
    with (
        EmbeddedS3(tmp_path / "s3") as server,
        open_site(database_dsn, tmp_path / "gateway", access_to(server)) as site,
    ):
        run_id, source = site.create_run(), make_file(64 * MIB)
        artifacts = site.artifacts(run_id)
        if doing == "download":
            artifacts.upload(source, "a")
        told: list[int] = []

        def move() -> None:
            if doing == "upload":
                artifacts.upload(source, "a", progress=told.append)
            else:
                artifacts.download("a", tmp_path / "b", progress=told.append)
            done.append(True)

        done: list[bool] = []
        moving = threading.Thread(target=move)
        moving.start()
        eventually(lambda: sum(told) > 20 * MIB, "some of it")
        server.kill()
        assert not done
        assert visible(site, run_id) == (["a"] if doing == "download" else [])
        server.start()
        moving.join(DEADLINE_S)
        assert done
        assert artifacts.read("a") == source.read_bytes()


def test_a_completion_whose_answer_is_lost_is_found_done(
    site: Site, make_file: Make, faults: S3Faults
) -> None:
    """The S3 server joined the parts, nobody heard of it, and the gateway died."""
    run_id, source = site.create_run(), make_file(20 * MIB)
    faults.faults.append(Fault(method="POST", query="uploadId", lose_answer=True, times=1))
    site.artifacts(run_id).upload(source, "a")
    assert site.artifacts(run_id).read("a") == source.read_bytes()
    assert len(faults.parts_stored()) == 2


# ---- S3 misbehaves -----------------------------------------------------------------


@pytest.mark.parametrize(("status", "code"), [(500, "InternalError"), (503, "SlowDown")])
def test_s3_that_is_unwell_for_a_while_is_waited_for(
    site: Site, make_file: Make, faults: S3Faults, status: int, code: str
) -> None:
    run_id, source = site.create_run(), make_file(40 * MIB)
    faults.faults.append(Fault(method="PUT", query="partNumber", status=status, code=code, times=3))
    faults.faults.append(Fault(method="POST", status=status, code=code, times=1))
    artifacts = site.artifacts(run_id)
    artifacts.upload(source, "a")
    faults.faults.append(Fault(method="GET", status=status, code=code, times=2))
    assert artifacts.read("a") == source.read_bytes()


def test_a_connection_cut_in_the_middle_of_a_part_sends_that_part_again(
    site: Site, make_file: Make, faults: S3Faults
) -> None:
    run_id, source = site.create_run(), make_file(40 * MIB)
    faults.faults.append(Fault(method="PUT", query="partNumber", cut_after_bytes=5 * MIB, times=2))
    faults.faults.append(Fault(method="GET", cut_after_bytes=5 * MIB, times=2))
    artifacts = site.artifacts(run_id)
    artifacts.upload(source, "a")
    assert sorted(faults.parts_stored()) == [1, 2, 3]
    assert artifacts.read("a") == source.read_bytes()


@pytest.mark.parametrize(
    ("method", "query", "permission"),
    [
        ("PUT", "partNumber", "s3:PutObject"),
        ("POST", "uploads", "s3:PutObject"),
        ("GET", "uploadId", "s3:ListMultipartUploadParts"),
    ],
)
def test_access_denied_names_bucket_permission_and_remedy(  # noqa: PLR0917 - pytest passes names
    site: Site, make_file: Make, faults: S3Faults, bucket: BucketAccess,
    method: str, query: str, permission: str,
) -> None:  # fmt: skip
    run_id, source = site.create_run(), make_file(20 * MIB)
    faults.faults.append(Fault(method=method, query=query, status=403, code="AccessDenied"))
    error = refusal(lambda: site.artifacts(run_id).upload(source, "a"))
    assert error.reason == "BLOB_STORE_DENIED"
    assert error.metadata["bucket"] == bucket.bucket
    assert error.metadata["permission"] == permission
    assert bucket.bucket in str(error)
    assert f"grant {permission}" in str(error)
    assert visible(site, run_id) == []


def test_an_s3_server_that_lists_no_etags_is_named_and_loses_nothing(
    site: Site, make_file: Make, faults: S3Faults
) -> None:
    run_id, source = site.create_run(), make_file(20 * MIB)
    faults.faults.append(Fault(method="GET", query="uploadId", omit="ETag"))
    error = refusal(lambda: site.artifacts(run_id).upload(source, "a"))
    assert error.reason == "INTERNAL"
    assert site.bucket.bucket in str(error)
    assert "without their ETags" in str(error)
    assert visible(site, run_id) == []
    faults.faults.clear()
    stored = sorted(faults.parts_stored())
    site.artifacts(run_id).upload(source, "a")
    assert sorted(faults.parts_stored()) == stored == [1, 2]


def test_an_s3_that_takes_nothing_is_given_up_and_others_are_undisturbed(
    site: Site, make_file: Make, faults: S3Faults
) -> None:
    run_id, source = site.create_run(), make_file(20 * MIB)
    faults.faults.append(Fault(method="PUT", query="partNumber", delay_s=3_600, times=1))
    artifacts = site.artifacts(run_id, parallel=1)
    began = time.monotonic()
    artifacts.upload(source, "a")  # the stuck part is sent again
    assert 2 <= time.monotonic() - began < DEADLINE_S
    assert artifacts.read("a") == source.read_bytes()


def test_slow_s3_holds_the_client_back_and_does_not_fail(
    site: Site, make_file: Make, faults: S3Faults
) -> None:
    run_id, source = site.create_run(), make_file(20 * MIB)
    # The first part, 16 MiB, takes longer than the limit on silence.
    faults.faults.append(Fault(method="PUT", query="partNumber", bytes_per_s=6 * MIB))
    begun_at = time.monotonic()
    site.artifacts(run_id, parallel=1).upload(source, "a")
    assert time.monotonic() - begun_at > 1.25 * STALL_TIMEOUT_S
    assert site.artifacts(run_id).read("a") == source.read_bytes()


# ---- slow clients ------------------------------------------------------------------


def test_a_client_that_falls_silent_frees_its_s3_connection(site: Site, make_file: Make) -> None:
    run_id, source = site.create_run(), make_file(20 * MIB)
    upload = begun(site, run_id, source)
    header = pb.UploadPartHeader(run_id=run_id, upload_id=upload.upload_id, part_number=1)
    over = threading.Event()

    def messages() -> Iterator[pb.UploadPartRequest]:
        yield pb.UploadPartRequest(header=header)
        yield pb.UploadPartRequest(chunk=bytes(1_000))
        over.wait(DEADLINE_S)

    with pytest.raises(grpc.RpcError) as caught:
        site.transfers().stub.UploadPart(messages())
    over.set()
    assert artifact_error(caught.value).reason == "TRANSFER_STALLED"
    assert site.gateway.metrics()["headrace_artifact_parts_active"] == 0


def test_a_reader_that_pauses_loses_its_connection_and_not_its_place(
    site: Site, make_file: Make, faults: S3Faults
) -> None:
    run_id, source = site.create_run(), make_file(40 * MIB)
    site.artifacts(run_id).upload(source, "a")
    stub = site.transfers().stub
    stream = stub.DownloadArtifact(pb.DownloadArtifactRequest(run_id=run_id, path="a"))
    content = next(stream).chunk
    eventually(
        lambda: faults.reads() and site.gateway.metrics()["headrace_artifact_reads_active"] == 0,
        "the release",
    )
    content += b"".join(message.chunk for message in stream)
    assert content == source.read_bytes()
    assert len(faults.reads()) >= 2  # more where this process was held up once again


@pytest.mark.parametrize(
    ("fate", "reason"), [("replaced", "ARTIFACT_CHANGED"), ("deleted", "ARTIFACT_NOT_FOUND")]
)
def test_a_reader_whose_artifact_goes_while_it_pauses_is_told_so(
    site: Site, make_file: Make, faults: S3Faults, fate: str, reason: str
) -> None:
    artifacts = site.artifacts(run_id := site.create_run())
    artifacts.upload(make_file(40 * MIB), "a")
    stub = site.transfers().stub
    stream = stub.DownloadArtifact(pb.DownloadArtifactRequest(run_id=run_id, path="a"))
    next(stream)
    eventually(
        lambda: faults.reads() and site.gateway.metrics()["headrace_artifact_reads_active"] == 0,
        "the release",
    )
    if fate == "replaced":
        artifacts.upload(make_file(1_000), "a")
    else:
        artifacts.delete("a")
    eventually(lambda: faults.requests("DELETE"), "the deletion at S3")
    with pytest.raises(grpc.RpcError) as caught:
        list(stream)
    assert artifact_error(caught.value).reason == reason


# ---- what is kept for resuming, and for how long -----------------------------------


def test_an_aborted_upload_is_gone_from_s3(site: Site, make_file: Make, faults: S3Faults) -> None:
    run_id, source = site.create_run(), make_file(20 * MIB)
    upload = begun(site, run_id, source)
    transfers = site.transfers()
    request = pb.AbortUploadRequest(run_id=run_id, upload_id=upload.upload_id)
    assert transfers.call(transfers.stub.AbortUpload, request).aborted
    assert not transfers.call(transfers.stub.AbortUpload, request).aborted
    eventually(lambda: faults.requests("DELETE", "uploadId"), "the abort at S3")
    listing = pb.ListPartsRequest(run_id=run_id, upload_id=upload.upload_id)
    error = refusal(lambda: transfers.call(transfers.stub.ListParts, listing))
    assert error.reason == "UPLOAD_NOT_FOUND"


def test_abandoned_uploads_are_aborted_after_their_time(
    database_dsn: str, tmp_path: Path, bucket: BucketAccess, faults: S3Faults, make_file: Make
) -> None:
    through = replace(bucket, endpoint_url=faults.url)
    source = make_file(20 * MIB)
    directory = tmp_path / "gateway"
    with open_site(database_dsn, directory, through, artifact_upload_expiry_s=1) as site:
        run_id = site.create_run()
        first = begun(site, run_id, source)

        def swept() -> bool:
            # Any upload wakes the cleaner.
            site.artifacts(run_id).upload(make_file(1), "small")
            return bool(faults.requests("DELETE", "uploadId"))

        eventually(swept, "the abort at S3")
        assert begun(site, run_id, source).upload_id != first.upload_id


def test_a_disk_that_is_full_leaves_no_half_of_a_download(
    site: Site, make_file: Make, tmp_path: Path
) -> None:
    run_id, source = site.create_run(), make_file(20 * MIB)
    site.artifacts(run_id).upload(source, "a")
    program = (
        "import resource, signal, sys, grpc\n"
        "from pathlib import Path\n"
        "from headrace.transfers import Transfers\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, 5_000_000))\n"
        "with grpc.insecure_channel(sys.argv[1]) as channel, Transfers(channel) as transfers:\n"
        "    transfers.download(sys.argv[2], 'a', Path(sys.argv[3]))\n"
    )
    arguments = [sys.executable, "-c", program, site.gateway.address, run_id, str(tmp_path / "b")]
    done = subprocess.run(arguments, capture_output=True, check=False, env={**os.environ})
    assert done.returncode != 0
    assert b"OSError" in done.stderr
    assert not (tmp_path / "b").exists()
