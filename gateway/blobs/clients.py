"""How the S3 server is reached: the settings, and a client for each kind of request."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final, Literal

_CONNECT_TIMEOUT_S: Final = 5.0
_CONTROL_CONNECTIONS: Final = 16
_CONTROL_TRIES: Final = 3
_UNSIGNED_BODY: Final = {"payload_signing_enabled": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketSettings:
    """Which bucket, and how to reach it.

    Attributes:
        bucket: its name.
        endpoint_url: of a server other than AWS.
        public_endpoint_url: how clients reach the server, when it differs.
        region: the bucket's.
        addressing_style: `path` for most servers that are not AWS.
        access_key_id: None leaves credentials to the standard AWS chain.
        secret_access_key: goes with it.
        key_prefix: of every key; empty, or ending in `/`.
        server_side_encryption: `AES256`, `aws:kms` or None for the bucket's default.
        kms_key_id: for `aws:kms`.
        storage_class: for example `STANDARD_IA`; None for the bucket's default.
        connections_max: for bytes; control requests have 16 more.
        stall_timeout_s: without progress, a transfer is given up.
    """

    bucket: str
    endpoint_url: str | None = None
    public_endpoint_url: str | None = None
    region: str = "us-east-1"
    addressing_style: Literal["path", "virtual"] = "virtual"
    access_key_id: str | None = None
    secret_access_key: str | None = None
    key_prefix: str = ""
    server_side_encryption: str | None = None
    kms_key_id: str | None = None
    storage_class: str | None = None
    connections_max: int = 96
    stall_timeout_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Clients:
    """Open aioboto3 clients.

    Attributes:
        control: for requests that are soon over; tries them three times.
        data: for bytes, with connections of its own; tries once, since a streamed
            body is gone afterwards.
        signer: knows the server as clients do.
    """

    control: Any
    data: Any
    signer: Any


@contextlib.asynccontextmanager
async def open_clients(settings: BucketSettings) -> AsyncIterator[Clients]:
    """Open the clients of a bucket; nothing is sent."""
    # Here: a third of a gateway's start, of no use to one without a bucket.
    import aioboto3  # noqa: PLC0415
    from aiobotocore.config import AioConfig  # noqa: PLC0415

    session = aioboto3.Session()
    async with contextlib.AsyncExitStack() as stack:

        async def client(endpoint_url: str | None, *, connections: int, tries: int) -> Any:
            config = AioConfig(**_manners(settings, connections=connections, tries=tries))
            return await stack.enter_async_context(
                session.client(**_server(settings, endpoint_url), config=config)
            )

        endpoint, public = settings.endpoint_url, settings.public_endpoint_url
        control = await client(endpoint, connections=_CONTROL_CONNECTIONS, tries=_CONTROL_TRIES)
        yield Clients(
            control=control,
            data=await client(endpoint, connections=settings.connections_max, tries=1),
            signer=control if public is None else await client(public, connections=1, tries=1),
        )


def open_blocking_client(settings: BucketSettings, *, connections: int) -> Any:
    """Return a boto3 client for use in threads; nothing is sent."""
    import boto3  # noqa: PLC0415 - few gateways need it
    from botocore.config import Config  # noqa: PLC0415

    config = Config(**_manners(settings, connections=connections, tries=_CONTROL_TRIES))
    return boto3.Session().client(**_server(settings, settings.endpoint_url), config=config)


def _server(settings: BucketSettings, endpoint_url: str | None) -> dict[str, Any]:
    return {
        "service_name": "s3",
        "region_name": settings.region,
        "endpoint_url": endpoint_url,
        "aws_access_key_id": settings.access_key_id,
        "aws_secret_access_key": settings.secret_access_key,
    }


def _manners(settings: BucketSettings, *, connections: int, tries: int) -> dict[str, Any]:
    return {
        "signature_version": "s3v4",
        "connect_timeout": _CONNECT_TIMEOUT_S,
        "read_timeout": settings.stall_timeout_s,
        "max_pool_connections": connections,
        "retries": {"total_max_attempts": tries, "mode": "standard"},
        # We send SHA-256 where it counts; CRC32 of every body would cost a pass.
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
        "s3": {"addressing_style": settings.addressing_style, **_UNSIGNED_BODY},
    }
