"""What an operator sets reaches S3; what would exceed a bound is told to come again."""

import contextlib
import hashlib
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import pytest
from headrace.artifact_errors import artifact_error
from headrace.v1 import artifact_service_pb2 as pb

from gateway.artifacts.wiring import bucket_settings
from gateway.blobs.bucket import Bucket
from gateway.cli import main
from gateway.config import Settings
from gateway.domain.errors import HeadraceError
from tests.artifacts.conftest import MIB, BucketAccess, open_site
from tests.artifacts.test_faults import begun
from tests.support.command import run_command
from tests.support.s3_faults import S3Faults
from tests.support.waiting import eventually

Make = Callable[..., Path]


async def one_chunk(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def test_encryption_and_storage_class_are_asked_for_with_every_object(
    database_dsn: str, bucket: BucketAccess, faults: S3Faults
) -> None:
    settings = replace(bucket, endpoint_url=faults.url).settings(
        database_dsn,
        s3_server_side_encryption="aws:kms",
        s3_kms_key_id="a-key",
        s3_storage_class="STANDARD_IA",
    )
    key, data = f"{bucket.key_prefix}a", b"data"
    async with Bucket(bucket_settings(settings)) as opened:
        digest = hashlib.sha256(data).digest()
        # There are servers without this class or this key; what they were asked for counts.
        with contextlib.suppress(HeadraceError):
            await opened.put(key, one_chunk(data), size=4, sha256=digest, content_type="text/plain")
        with contextlib.suppress(HeadraceError):
            await opened.abort_multipart(key, await opened.begin_multipart(key, content_type="a/b"))
        await opened.delete(key)
        await opened.checks_sha256()
    probes = [each for each in faults.seen if each.method == "PUT" and "/probe/" in each.path]
    assert len(probes) == 1
    for made in (*faults.requests("PUT"), *faults.requests("POST", "uploads"), *probes):
        assert made.headers["x-amz-server-side-encryption"] == "aws:kms"
        assert made.headers["x-amz-server-side-encryption-aws-kms-key-id"] == "a-key"
        assert made.headers["x-amz-storage-class"] == "STANDARD_IA"
    assert len(faults.requests("PUT")) == len(faults.requests("POST", "uploads")) == 1


@pytest.mark.parametrize(
    ("style", "endpoint_url", "host", "path"),
    [
        ("auto", "http://s3.example.org", "s3.example.org", "/bucket/k"),
        ("path", "http://s3.example.org", "s3.example.org", "/bucket/k"),
        ("virtual", "http://s3.example.org", "bucket.s3.example.org", "/k"),
        ("auto", None, "bucket.s3.eu-central-1.amazonaws.com", "/k"),
    ],
)
async def test_endpoint_region_and_addressing_style_decide_the_url(
    style: str, endpoint_url: str | None, host: str, path: str
) -> None:
    settings = Settings.model_validate(
        {
            "s3_bucket": "bucket",
            "s3_endpoint_url": endpoint_url,
            "s3_region": "eu-central-1",
            "s3_addressing_style": style,
            "s3_access_key_id": "id",
            "s3_secret_access_key": "secret",
        }
    )
    async with Bucket(bucket_settings(settings)) as opened:
        url = urlsplit(await opened.sign_get("k", expires_s=60))
    assert (url.netloc, url.path) == (host, path)
    assert "eu-central-1" in url.query


async def test_clients_get_urls_of_the_public_endpoint(bucket: BucketAccess) -> None:
    settings = bucket.settings("", s3_public_endpoint_url="https://s3.example.org")
    async with Bucket(bucket_settings(settings)) as opened:
        assert (await opened.sign_get("k", expires_s=60)).startswith("https://s3.example.org/")


def test_credentials_come_from_the_standard_chain(database_dsn: str, bucket: BucketAccess) -> None:
    variables = bucket.variables()
    chain = {
        "AWS_ACCESS_KEY_ID": variables.pop("HEADRACE_GATEWAY_S3_ACCESS_KEY_ID"),
        "AWS_SECRET_ACCESS_KEY": variables.pop("HEADRACE_GATEWAY_S3_SECRET_ACCESS_KEY"),
    }
    for extra, expected in ((chain, "good"), ({"AWS_EC2_METADATA_DISABLED": "true"}, "bad")):
        environment = {**variables, **extra, "HOME": "/nowhere"}
        done = run_command(main, "doctor", "--dsn", database_dsn, "--json", environment=environment)
        findings = {each["check"]: each for each in json.loads(done.stdout)["findings"]}
        assert findings["S3 bucket"]["health"] == expected
    assert "no S3 credentials" in findings["S3 bucket"]["remedy"]


def test_more_open_transfers_than_the_bound_are_told_to_come_again(
    database_dsn: str, tmp_path: Path, bucket: BucketAccess, make_file: Make
) -> None:
    """One part may move, eight may be open: the ninth is refused, and nobody else harmed."""
    over = threading.Event()
    directory = tmp_path / "gateway"
    with open_site(database_dsn, directory, bucket, artifact_parts_in_flight_max=1) as site:
        run_id, source = site.create_run(), make_file(20 * MIB)
        upload = begun(site, run_id, source)
        stub = site.transfers().stub

        def messages() -> Iterator[pb.UploadPartRequest]:
            header = pb.UploadPartHeader(run_id=run_id, upload_id=upload.upload_id, part_number=1)
            yield pb.UploadPartRequest(header=header)
            over.wait(60)

        held = [stub.UploadPart.future(messages()) for _ in range(8)]

        def refused() -> bool:
            extra = stub.UploadPart.future(iter([next(messages())]))
            try:
                extra.result(timeout=1)
            except grpc.FutureTimeoutError:
                extra.cancel()
                return False
            except grpc.RpcError as error:
                return artifact_error(error).reason == "OVERLOADED"
            return False

        eventually(refused, "the refusal")
        assert not any(call.done() for call in held)
        over.set()
        for call in held:
            call.cancel()
        site.artifacts(run_id).upload(source, "a")
        assert site.artifacts(run_id).read("a") == source.read_bytes()
