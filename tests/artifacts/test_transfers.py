"""Files in, the same files out; listing, replacing, sharing, deleting."""

import hashlib
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import grpc
import pytest
from headrace.artifact_errors import ArtifactError
from headrace.artifacts import Artifacts
from headrace.v1 import artifact_service_pb2 as pb
from headrace.v1.artifact_service_pb2_grpc import ArtifactServiceStub

from tests.artifacts.conftest import MIB, Site
from tests.support.gateway_process import GatewayProcess
from tests.support.s3_faults import S3Faults

Make = Callable[..., Path]


def paths(artifacts: Artifacts, folder: str = "", *, recursive: bool = True) -> list[str]:
    return [entry.path for entry in artifacts.list(folder, recursive=recursive)]


def refusal(call: Callable[[], object]) -> ArtifactError:
    with pytest.raises(ArtifactError) as caught:
        call()
    return caught.value


@pytest.mark.parametrize("direct", ["never", "always"])
@pytest.mark.parametrize("size", [0, 1, MIB + 7, 16 * MIB, 16 * MIB + 1, 40 * MIB])
def test_what_comes_out_is_what_went_in(
    site: Site, make_file: Make, tmp_path: Path, size: int, direct: str
) -> None:
    source = make_file(size)
    artifacts = site.artifacts(site.create_run(), direct=direct)
    (stored,) = artifacts.upload(source, "models/last.pt", content_type="application/x-torch")
    assert (stored.path, stored.size) == ("models/last.pt", size)
    assert stored.content_type == "application/x-torch"
    content = source.read_bytes()
    if size <= 16 * MIB:
        assert stored.digest == hashlib.sha256(content).hexdigest()
    written = artifacts.download("models/last.pt", tmp_path / "out" / "last.pt")
    assert written.read_bytes() == content
    assert list(written.parent.iterdir()) == [written]  # nothing half-made is left
    assert artifacts.read("models/last.pt") == content
    assert artifacts.verify("models/last.pt") == stored
    assert artifacts.matches("models/last.pt", source)


def test_a_directory_goes_and_comes_with_its_structure(
    site: Site, make_file: Make, tmp_path: Path
) -> None:
    for name in ("tree/a.txt", "tree/sub/b.bin", "tree/sub/deeper/c"):
        make_file(1_000, name)
    artifacts = site.artifacts(site.create_run())
    artifacts.upload(tmp_path / "tree", "data")
    assert paths(artifacts) == ["data/a.txt", "data/sub/b.bin", "data/sub/deeper/c"]
    artifacts.download("data", tmp_path / "copy")
    for name in ("a.txt", "sub/b.bin", "sub/deeper/c"):
        assert (tmp_path / "copy" / name).read_bytes() == (tmp_path / "tree" / name).read_bytes()


def test_progress_adds_up_to_the_size(site: Site, make_file: Make, tmp_path: Path) -> None:
    source = make_file(33 * MIB)
    artifacts = site.artifacts(site.create_run())
    told: list[int] = []
    artifacts.upload(source, "a", progress=told.append)
    artifacts.download("a", tmp_path / "b", progress=told.append)
    artifacts.upload(source, "again", progress=told.append)  # deduplicated
    assert sum(told) == 3 * 33 * MIB


def test_an_artifact_reads_like_a_file(site: Site, make_file: Make) -> None:
    source = make_file(20 * MIB)
    content = source.read_bytes()
    artifacts = site.artifacts(site.create_run())
    artifacts.upload(source, "a.bin")
    with artifacts.open("a.bin") as file:
        assert file.read(10) == content[:10]
        file.seek(17 * MIB)
        assert file.read(5) == content[17 * MIB : 17 * MIB + 5]
        assert file.seek(-3, io.SEEK_END) == 20 * MIB - 3
        assert file.read() == content[-3:]
        assert file.read(1) == b""


def test_uploading_to_a_path_in_use_replaces_it_and_old_readers_are_told(
    site: Site, make_file: Make
) -> None:
    artifacts = site.artifacts(site.create_run())
    old, new = make_file(2 * MIB), make_file(2 * MIB)
    artifacts.upload(old, "a")
    with artifacts.open("a") as file:
        file.read(1)
        artifacts.upload(new, "a")
        file.seek(1_500_000)
        assert refusal(lambda: file.read(10)).reason == "ARTIFACT_CHANGED"
    assert artifacts.read("a") == new.read_bytes()
    assert paths(artifacts) == ["a"]


def test_equal_content_is_sent_once_an_experiment(
    site: Site, make_file: Make, faults: S3Faults
) -> None:
    small, large = make_file(100), make_file(20 * MIB)
    first, second = (site.artifacts(site.create_run("one")) for _ in range(2))
    other = site.artifacts(site.create_run("two"))
    for file in (small, large):
        first.upload(file, file.name)
    puts = faults.requests("PUT")
    assert len(puts) == 1 + 2
    for file in (small, large):
        first.upload(file, f"again/{file.name}")
        second.upload(file, file.name)
    assert len(faults.requests("PUT")) == len(puts)
    other.upload(small, small.name)
    assert len(faults.requests("PUT")) == len(puts) + 1
    # Deleting counts references: the content lives as long as anybody refers to it.
    first.delete("again", recursive=True)
    first.delete(small.name)
    first.delete(large.name)
    assert second.read(large.name) == large.read_bytes()
    assert second.read(small.name) == small.read_bytes()


def test_two_clients_share_the_upload_of_the_same_file(
    site: Site, make_file: Make, faults: S3Faults
) -> None:
    source = make_file(48 * MIB)
    run_id = site.create_run()
    clients = [site.artifacts(run_id) for _ in range(3)]
    with ThreadPoolExecutor(3) as executor:
        stored = list(executor.map(lambda each: each.upload(source, "a")[0].digest, clients))
    assert len(set(stored)) == 1
    assert clients[0].read("a") == source.read_bytes()
    assert len({seen.path for seen in faults.requests("POST", "uploads")}) == 1


def test_folders_list_like_directories_page_by_page(site: Site) -> None:
    run_id = site.create_run()
    stub = ArtifactServiceStub(site.channel)
    digest = hashlib.sha256(b"x").digest()
    names = ["a", "b/1", "b/2/x", "b-c", "c/1", "c/2", "d", "é/ü"]
    for path in names:
        header = pb.UploadArtifactHeader(run_id=run_id, path=path, size=1, digest=digest)
        messages = [pb.UploadArtifactRequest(header=header), pb.UploadArtifactRequest(chunk=b"x")]
        stub.UploadArtifact(iter(messages))

    def all_pages(**request: object) -> list[str]:
        found, token = [], ""
        while True:
            answer = stub.ListArtifacts(
                pb.ListArtifactsRequest(run_id=run_id, page_token=token, **request)  # type: ignore[arg-type]
            )
            found += [e.artifact.path or f"{e.folder}/" for e in answer.entries]
            token = answer.next_page_token
            if not token:
                return found

    for size in (1, 2, 3, 100):
        assert all_pages(page_size=size) == ["a", "b-c", "b/", "c/", "d", "é/"]
        assert all_pages(page_size=size, folder="b") == ["b/1", "b/2/"]
        assert all_pages(page_size=size, recursive=True) == sorted(names, key=str.encode)
        assert all_pages(page_size=size, folder="b", recursive=True) == ["b/1", "b/2/x"]
    assert all_pages(folder="nothing") == []
    for bad, reason in (
        ({"page_size": -1}, "FIELD_INVALID"),
        ({"page_token": "a", "folder": "b"}, "PAGE_TOKEN_INVALID"),
        ({"folder": "../b"}, "ARTIFACT_PATH_INVALID"),
    ):
        request = pb.ListArtifactsRequest(run_id=run_id, **bad)
        call = site.transfers(patience_s=0).call
        assert refusal(partial(call, stub.ListArtifacts, request)).reason == reason


def test_a_path_is_a_file_or_a_folder_and_never_both(site: Site, make_file: Make) -> None:
    artifacts = site.artifacts(site.create_run())
    artifacts.upload(make_file(1), "a/b")
    for path in ("a", "a/b/c"):
        error = refusal(partial(artifacts.upload, make_file(2), path))
        assert error.reason == "ARTIFACT_PATH_CONFLICT"
    assert paths(artifacts) == ["a/b"]


@pytest.mark.parametrize("path", ["../a", "/a", "a//b", "a/./b", "a\\b", "a\nb", "x" * 300, ""])
def test_the_gateway_refuses_bad_paths_by_itself(site: Site, path: str) -> None:
    run_id = site.create_run()
    transfers = site.transfers(patience_s=0)
    for method, request in (
        (transfers.stub.StatArtifact, pb.StatArtifactRequest(run_id=run_id, path=path)),
        (
            transfers.stub.BeginUpload,
            pb.BeginUploadRequest(
                run_id=run_id, path=path, size=16 * MIB + 1, part_sha256s=bytes(64)
            ),
        ),
    ):
        error = refusal(partial(transfers.call, method, request))
        assert error.reason == "ARTIFACT_PATH_INVALID"


def test_sizes_and_digests_that_do_not_fit_are_refused(site: Site) -> None:
    run_id = site.create_run()
    transfers = site.transfers(patience_s=0)
    for size, digests, reason in (
        (16 * MIB, 32, "FIELD_INVALID"),
        (17 * MIB, 32, "FIELD_INVALID"),
        (17 * MIB, 65, "FIELD_INVALID"),
        (6 * 2**40, 64, "LIMIT_EXCEEDED"),
    ):
        request = pb.BeginUploadRequest(
            run_id=run_id, path="a", size=size, part_sha256s=bytes(digests)
        )
        error = refusal(partial(transfers.call, transfers.stub.BeginUpload, request))
        assert error.reason == reason


def test_unknown_things_are_named(site: Site, make_file: Make) -> None:
    artifacts = site.artifacts(site.create_run(), patience_s=0)
    assert refusal(lambda: artifacts.stat("nothing")).reason == "ARTIFACT_NOT_FOUND"
    assert refusal(lambda: artifacts.delete("nothing")).reason == "ARTIFACT_NOT_FOUND"
    nowhere = site.artifacts("0" * 32, patience_s=0)
    assert refusal(lambda: nowhere.upload(make_file(1), "a")).reason == "RUN_NOT_FOUND"
    assert refusal(lambda: list(nowhere.list())).reason == "RUN_NOT_FOUND"


def test_a_gateway_without_a_bucket_says_so(gateway: GatewayProcess) -> None:
    with grpc.insecure_channel(gateway.address) as channel:
        stub = ArtifactServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.ListArtifacts(pb.ListArtifactsRequest(run_id="0" * 32))
    assert "s3_bucket" in str(caught.value.details())
