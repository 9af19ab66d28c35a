"""Past the gateway: chosen by itself, given up by itself, verified all the same."""

import ssl
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trustme
from headrace.artifact_errors import FileChangedError
from headrace.v1 import artifact_service_pb2 as pb

from tests.artifacts.conftest import MIB, BucketAccess, Site, open_site
from tests.artifacts.test_faults import begun, refusal, visible
from tests.support.s3_faults import Fault, S3Faults, Seen, s3_faults
from tests.support.waiting import eventually

Make = Callable[..., Path]


def past_the_gateway(seen: list[Seen]) -> list[Seen]:
    """Of these requests, those that were signed in their URL."""
    return [each for each in seen if "X-Amz-Signature" in each.query]


def test_large_files_go_past_the_gateway_by_themselves_and_small_ones_do_not(
    site: Site, make_file: Make, faults: S3Faults, tmp_path: Path
) -> None:
    artifacts = site.artifacts(site.create_run(), direct="auto")
    small, large = make_file(20 * MIB), make_file(64 * MIB)
    artifacts.upload(small, "small")
    artifacts.download("small", tmp_path / "small")
    assert past_the_gateway(faults.seen) == []
    artifacts.upload(large, "large")
    artifacts.download("large", tmp_path / "large")
    assert (tmp_path / "large").read_bytes() == large.read_bytes()
    direct = past_the_gateway(faults.seen)
    assert [each.method for each in direct] == ["PUT"] * 4 + ["GET"] * 4


def test_a_server_that_clients_cannot_reach_costs_nothing_but_the_direct_way(
    database_dsn: str, tmp_path: Path, bucket: BucketAccess, faults: S3Faults, make_file: Make
) -> None:
    through = replace(bucket, endpoint_url=faults.url)
    unreachable = "http://127.0.0.1:9"
    with open_site(
        database_dsn, tmp_path / "gateway", through, s3_public_endpoint_url=unreachable
    ) as site:
        artifacts, source = site.artifacts(site.create_run(), direct="always"), make_file(40 * MIB)
        artifacts.upload(source, "a")
        artifacts.download("a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == source.read_bytes()
    assert sorted(faults.parts_stored()) == [1, 2, 3]
    assert past_the_gateway(faults.seen) == []


def test_parts_go_past_the_gateway_over_tls_several_at_once(
    database_dsn: str,
    tmp_path: Path,
    bucket: BucketAccess,
    make_file: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    with (
        s3_faults(bucket.endpoint_url, tls=tls) as encrypted,
        open_site(
            database_dsn, tmp_path / "gateway", bucket, s3_public_endpoint_url=encrypted.url
        ) as site,
    ):
        artifacts, source = site.artifacts(site.create_run(), direct="always"), make_file(100 * MIB)
        artifacts.upload(source, "a")
        artifacts.download("a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == source.read_bytes()
    assert sorted(encrypted.parts_stored()) == [1, 2, 3, 4, 5, 6, 7]
    assert [each.method for each in past_the_gateway(encrypted.seen)] == ["PUT"] * 7 + ["GET"] * 7


def test_an_operator_can_switch_it_off(
    database_dsn: str, tmp_path: Path, bucket: BucketAccess, faults: S3Faults, make_file: Make
) -> None:
    through = replace(bucket, endpoint_url=faults.url)
    with open_site(database_dsn, tmp_path / "gateway", through, artifact_direct=False) as site:
        run_id, source = site.create_run(), make_file(20 * MIB)
        upload = begun(site, run_id, source)
        assert not upload.direct_available
        transfers = site.transfers(patience_s=0)
        request = pb.SignUploadPartsRequest(
            run_id=run_id, upload_id=upload.upload_id, part_numbers=[1]
        )
        error = refusal(lambda: transfers.call(transfers.stub.SignUploadParts, request))
        assert error.reason == "DIRECT_UNAVAILABLE"
        artifacts = site.artifacts(run_id, direct="always")
        artifacts.upload(source, "a")
        artifacts.download("a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == source.read_bytes()
    assert past_the_gateway(faults.seen) == []


@pytest.mark.parametrize(
    "fault",
    [
        Fault(method="PUT", query="X-Amz-Signature", status=500, code="InternalError"),
        Fault(method="PUT", query="X-Amz-Signature", status=403, code="AccessDenied"),
        Fault(method="PUT", query="X-Amz-Signature", cut_after_bytes=MIB),
    ],
)
def test_parts_that_s3_refuses_from_the_client_go_through_the_gateway(
    site: Site, make_file: Make, faults: S3Faults, fault: Fault
) -> None:
    faults.faults.append(fault)
    artifacts, source = site.artifacts(site.create_run(), direct="always"), make_file(40 * MIB)
    told: list[int] = []
    artifacts.upload(source, "a", progress=told.append)
    assert sum(told) == 40 * MIB
    assert sorted(faults.parts_stored()) == [1, 2, 3]
    assert artifacts.read("a") == source.read_bytes()


def test_bytes_damaged_on_the_way_past_the_gateway_are_found_and_sent_again(
    site: Site, make_file: Make, faults: S3Faults
) -> None:
    faults.faults.append(Fault(method="PUT", query="X-Amz-Signature", damage=True, times=1))
    run_id, source = site.create_run(), make_file(40 * MIB)
    told: list[int] = []
    site.artifacts(run_id, direct="always").upload(source, "a", progress=told.append)
    assert sum(told) == 40 * MIB
    assert site.artifacts(run_id).read("a") == source.read_bytes()


def test_a_file_that_changes_on_its_way_past_the_gateway_is_not_stored(
    site: Site, make_file: Make, faults: S3Faults
) -> None:
    run_id, source = site.create_run(), make_file(64 * MIB)
    faults.faults.append(Fault(method="PUT", query="partNumber", delay_s=0.001))

    def change() -> None:
        eventually(lambda: faults.requests("POST", "uploads"), "the upload's beginning")
        with source.open("r+b") as file:
            file.seek(50 * MIB)
            file.write(b"changed")

    changing = threading.Thread(target=change)
    changing.start()
    with pytest.raises(FileChangedError):
        site.artifacts(run_id, direct="always", parallel=1).upload(source, "a")
    changing.join()
    assert visible(site, run_id) == []
