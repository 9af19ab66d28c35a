"""Artifacts against a real S3 server: the embedded one, or any that the environment names.

    HEADRACE_TEST_S3_ENDPOINT_URL   empty or unset: the embedded server
    HEADRACE_TEST_S3_BUCKET, …_ACCESS_KEY_ID, …_SECRET_ACCESS_KEY, …_REGION

The bucket must exist; everything goes below a key prefix of its own. The tests
of a module share a gateway behind a proxy that injects faults; each has runs in
an experiment of its own, and finds the proxy without faults.
"""

import itertools
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from headrace.artifacts import Artifacts
from headrace.transfers import Transfers
from headrace.v1 import run_service_pb2 as runs
from headrace.v1.run_service_pb2_grpc import RunServiceStub

from gateway.config import Settings
from gateway.embedded import EmbeddedS3
from tests.conftest import NewDatabase
from tests.support.gateway_process import GatewayProcess
from tests.support.s3_faults import S3Faults, s3_faults

MIB = 1024 * 1024
STALL_TIMEOUT_S = 2
_numbers = itertools.count()


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketAccess:
    """How to reach the bucket of the tests."""

    endpoint_url: str
    bucket: str
    access_key_id: str
    secret_access_key: str
    region: str
    key_prefix: str = ""

    def variables(self) -> dict[str, str]:
        """The gateway's settings."""
        values = {
            "S3_BUCKET": self.bucket,
            "S3_ENDPOINT_URL": self.endpoint_url,
            "S3_ACCESS_KEY_ID": self.access_key_id,
            "S3_SECRET_ACCESS_KEY": self.secret_access_key,
            "S3_REGION": self.region,
            "S3_KEY_PREFIX": self.key_prefix,
        }
        return {f"HEADRACE_GATEWAY_{name}": value for name, value in values.items()}

    def settings(self, dsn: str, **more: Any) -> Settings:
        """The same as values, for tests that use the parts of the gateway in process."""
        return Settings(
            dsn=dsn,
            s3_bucket=self.bucket,
            s3_endpoint_url=self.endpoint_url,
            s3_access_key_id=self.access_key_id,
            s3_secret_access_key=self.secret_access_key,
            s3_region=self.region,
            s3_key_prefix=self.key_prefix,
            **more,
        )


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> BucketAccess:
    """The bucket that all tests share."""
    endpoint = os.environ.get("HEADRACE_TEST_S3_ENDPOINT_URL", "")
    if endpoint:
        return BucketAccess(
            endpoint_url=endpoint,
            bucket=os.environ["HEADRACE_TEST_S3_BUCKET"],
            access_key_id=os.environ["HEADRACE_TEST_S3_ACCESS_KEY_ID"],
            secret_access_key=os.environ["HEADRACE_TEST_S3_SECRET_ACCESS_KEY"],
            region=os.environ.get("HEADRACE_TEST_S3_REGION", "us-east-1"),
        )
    return access_to(request.getfixturevalue("s3"))


def access_to(server: EmbeddedS3) -> BucketAccess:
    """Return how to reach an embedded server's bucket."""
    return BucketAccess(
        endpoint_url=server.endpoint_url,
        bucket=server.bucket,
        access_key_id=server.access_key_id,
        secret_access_key=server.secret_access_key,
        region="us-east-1",
    )


def with_own_prefix(access: BucketAccess) -> BucketAccess:
    """Return the same bucket with a key prefix that nobody else has."""
    return replace(access, key_prefix=f"test-{uuid.uuid4().hex[:12]}/")


@pytest.fixture
def bucket(server: BucketAccess) -> BucketAccess:
    """The bucket, with a key prefix that no other test has."""
    return with_own_prefix(server)


@pytest.fixture(scope="module")
def shared_faults(server: BucketAccess) -> Iterator[S3Faults]:
    """A proxy before the bucket's server; the gateway of `site` goes through it."""
    with s3_faults(server.endpoint_url) as proxy:
        yield proxy


@pytest.fixture
def faults(shared_faults: S3Faults) -> S3Faults:
    """The proxy, faultless and forgetful."""
    shared_faults.faults.clear()
    shared_faults.seen.clear()
    return shared_faults


class Site:
    """A gateway with a bucket, and clients of it."""

    def __init__(self, gateway: GatewayProcess, bucket: BucketAccess, stack: ExitStack) -> None:
        self.gateway = gateway
        self.bucket = bucket
        self.experiment = f"artifacts-{uuid.uuid4().hex[:12]}"
        self._stack = stack
        self.channel = self.connect()

    def connect(self) -> grpc.Channel:
        """Open another channel, closed with the site."""
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 500)]
        channel = grpc.insecure_channel(self.gateway.address, options=options)
        self._stack.callback(channel.close)
        return channel

    def create_run(self, experiment: str = "") -> str:
        """Create a run, in the site's own experiment by default, and return its id."""
        run_id = uuid.uuid4().hex
        request = runs.CreateRunRequest(run_id=run_id, experiment=experiment or self.experiment)
        RunServiceStub(self.channel).CreateRun(request, timeout=10)
        return run_id

    def transfers(self, **options: Any) -> Transfers:
        """Make a client."""
        options.setdefault("direct", "never")
        options.setdefault("patience_s", 30.0)
        return self._stack.enter_context(Transfers(self.channel, **options))

    def artifacts(self, run_id: str, **options: Any) -> Artifacts:
        """Make a client of one run."""
        return Artifacts(self.transfers(**options), run_id)


def gateway_of(
    dsn: str, directory: Path, bucket: BucketAccess, **settings: object
) -> GatewayProcess:
    """Return a gateway with these settings, not yet started."""
    directory.mkdir(exist_ok=True)
    variables = {f"HEADRACE_GATEWAY_{name.upper()}": str(v) for name, v in settings.items()}
    return GatewayProcess(dsn, directory, environment={**bucket.variables(), **variables})


@contextmanager
def open_site(
    dsn: str, directory: Path, bucket: BucketAccess, **settings: object
) -> Iterator[Site]:
    """Start a gateway with these settings."""
    with ExitStack() as stack:
        process = stack.enter_context(gateway_of(dsn, directory, bucket, **settings))
        yield Site(process, bucket, stack)


@pytest.fixture(scope="module")
def patient_gateway(
    new_database: NewDatabase,
    tmp_path_factory: pytest.TempPathFactory,
    server: BucketAccess,
    shared_faults: S3Faults,
) -> Iterator[GatewayProcess]:
    """A gateway whose S3 is the fault proxy, told to give up on silence soon."""
    through = replace(with_own_prefix(server), endpoint_url=shared_faults.url)
    directory = tmp_path_factory.mktemp("gateway")
    with (
        new_database() as dsn,
        gateway_of(dsn, directory, through, artifact_stall_timeout_s=STALL_TIMEOUT_S) as process,
    ):
        yield process


@pytest.fixture
def site(patient_gateway: GatewayProcess, bucket: BucketAccess, faults: S3Faults) -> Iterator[Site]:
    """The module's gateway behind the fault proxy, and clients of this test."""
    with ExitStack() as stack:
        yield Site(patient_gateway, replace(bucket, endpoint_url=faults.url), stack)


@pytest.fixture
def make_file(tmp_path: Path) -> Callable[..., Path]:
    """Make a file of random bytes: `make_file(size, name=…)`."""

    def make(size: int, name: str = "") -> Path:
        number = next(_numbers)
        path = tmp_path / (name or f"file-{number}.bin")
        path.parent.mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng(number)
        with path.open("wb") as file:
            for start in range(0, size, 8 * MIB):
                file.write(random.bytes(min(8 * MIB, size - start)))
        return path

    return make
