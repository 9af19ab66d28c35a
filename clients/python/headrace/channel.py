"""The gRPC channel to a gateway: options, TLS, the bearer token. Never imported by a trainer."""

from pathlib import Path
from typing import Final

import grpc
import grpc.aio

from headrace.limits import MESSAGE_BYTES_MAX
from headrace.settings import Settings

CONNECT_TIMEOUT_S: Final = 10

_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    # Reads and acks are bounded by the contract; windows need not grow by themselves.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 1_048_576),
    ("grpc.max_receive_message_length", 4 * MESSAGE_BYTES_MAX),
    # A gateway stands inside the cluster; proxies are for the way out.
    ("grpc.enable_http_proxy", 0),
    # One channel for each stream, with no state shared between attempts: a
    # `reconnect` really goes elsewhere, and the back-off is ours alone.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", CONNECT_TIMEOUT_S * 1000),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    # With keepalive on, TCP_USER_TIMEOUT is too: an unanswered heartbeat on a
    # black-holed connection ends it after 20 s.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.enable_retries", 0),
)


def open_channel(settings: Settings) -> grpc.aio.Channel:
    """A channel; nothing is connected yet. To be made inside the running loop, and closed."""
    target, credentials = _target(settings)
    if credentials is None:
        return grpc.aio.insecure_channel(target, options=_OPTIONS)
    return grpc.aio.secure_channel(target, credentials, options=_OPTIONS)


def open_blocking_channel(settings: Settings) -> grpc.Channel:
    """The same for callers without a loop."""
    target, credentials = _target(settings)
    if credentials is None:
        return grpc.insecure_channel(target, options=_OPTIONS)
    return grpc.secure_channel(target, credentials, options=_OPTIONS)


def _target(settings: Settings) -> tuple[str, grpc.ChannelCredentials | None]:
    target = settings.address.removeprefix("https://")
    if target == settings.address:
        return target, None
    authorities = Path(settings.tls_ca).read_bytes() if settings.tls_ca else None
    return target, grpc.ssl_channel_credentials(authorities)


def call_metadata(settings: Settings) -> grpc.aio.Metadata:
    """What every call carries."""
    metadata = grpc.aio.Metadata()
    if settings.token:
        metadata.add("authorization", f"Bearer {settings.token}")
    if settings.workspace:
        metadata.add("headrace-workspace", settings.workspace)
    return metadata
