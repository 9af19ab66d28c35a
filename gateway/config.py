"""Settings: parsed once from flags, environment and file into one frozen value.

A setting `pending_bytes_max` is the variable `HEADRACE_GATEWAY_PENDING_BYTES_MAX`,
the key `pending_bytes_max` of the TOML file and `--set pending_bytes_max=…` of
`serve`, which has flags of their own for some (`--workers`); flags win over the
environment, the environment over the file. Nothing else in the gateway reads the
environment.

A bad or unknown setting is one line naming where it came from; `load` collects
them all. (pydantic-settings ignores misspelt variables, hence this reader.)
"""

import ipaddress
import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import parse_qsl, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    ValidationError,
    field_serializer,
    model_validator,
)

from gateway.domain.cleanup import CleanupRule

PREFIX: Final = "HEADRACE_GATEWAY_"
DEFAULT_FILE: Final = Path("headrace.toml")
_QUERY_CONNECTIONS_PER_WORKER_MIN: Final = 2
"""A long read holds one for minutes; heartbeats, which keep runs from being LOST, need another."""
# Kubernetes sets these for every service named headrace-gateway; they are not ours.
_FOREIGN: Final = re.compile(r"(SERVICE|PORT)(_.*)?")
_DSN_HOST: Final = re.compile(r"(\[[^\[\]]+\]|[^\[\]:]*)(?::([0-9]*))?")
# What botocore takes for a host; it raises ValueError for others.
_HOST_NAME: Final = re.compile(r"((?!-)[a-z0-9-]{1,63}(?<!-)\.)*((?!-)[a-z0-9-]{1,63}(?<!-))\.?")


class SettingsError(Exception):
    """The settings are bad; `problems` has one line for each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def split_address(text: str) -> tuple[str, int]:
    """Split `host:port` or `[v6]:port`; raise ValueError for anything else."""
    host, separator, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not separator or not host or not port.isdecimal() or int(port) > 65_535:
        raise ValueError("expected host:port")
    return host, int(port)


def _checked_address(text: str) -> str:
    split_address(text)
    return text


def _checked_dsn(text: str) -> str:
    if text and not text.startswith(("postgresql://", "postgres://")):
        raise ValueError("expected postgresql://user:password@host:port/name")
    if text and not _is_readable_dsn(text):
        raise ValueError(
            "cannot be read: expected postgresql://user:password@host:port/name, whose user and"
            " password have / as %2F, ? as %3F, # as %23, @ as %40 and [ as %5B"
        )
    return text


def _is_readable_dsn(text: str) -> bool:
    """Whether each part is what it was meant to be.

    A password's own / ? # @ or [ ends its part early: the driver would take what
    is left of it for a host, a port or a database, and quote it in an error.
    """
    try:
        parts = urlsplit(text)
        if parts.query:
            parse_qsl(parts.query, strict_parsing=True)
    except ValueError:
        return False
    if parts.netloc.count("@") != ("@" in text) or "@" in parts.path or parts.fragment:
        return False
    hosts = [_DSN_HOST.fullmatch(host) for host in parts.netloc.rpartition("@")[2].split(",")]
    return all(host is not None and int(host[2] or 0) <= 65_535 for host in hosts)


def _checked_endpoint_url(text: str) -> str:
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise _no_endpoint_url() from None
    known_host = _HOST_NAME.fullmatch(host) or ":" in host
    if parts.scheme not in {"http", "https"} or not known_host or not text.isprintable():
        raise _no_endpoint_url()
    return text


def _no_endpoint_url() -> ValueError:
    return ValueError("expected http://host:port or https://host:port")


def _cleanup_rules(value: object) -> object:
    tables = json.loads(value) if isinstance(value, str) else value
    if not isinstance(tables, list | tuple):
        raise ValueError("expected a list of tables")
    try:
        return tuple(
            table if isinstance(table, CleanupRule) else CleanupRule.parse(**table)
            for table in tables
        )
    except TypeError as error:  # a key too many or too few
        raise ValueError(str(error).removeprefix("CleanupRule.parse() ")) from error


def _query_connections(workers: int) -> int:
    return max(4, _QUERY_CONNECTIONS_PER_WORKER_MIN * workers)


Address = Annotated[str, AfterValidator(_checked_address)]
EndpointUrl = Annotated[str, AfterValidator(_checked_endpoint_url)]


class Settings(BaseModel):
    """What an operator may choose. Limits of the wire contract are in `domain.limits`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    listen: Address = "127.0.0.1:7420"
    """Where gRPC listens. Port 0 takes a free one."""
    metrics_listen: Address | Literal["off"] = "127.0.0.1:7421"
    """Where Prometheus reads, over plain HTTP."""

    dsn: Annotated[str, AfterValidator(_checked_dsn)] = Field(default="", repr=False)
    """The PostgreSQL database, `postgresql://user:password@host:port/name`."""
    embedded: Path | None = None
    """Start PostgreSQL and an S3 server in this directory, in place of `dsn`."""

    workers: int = Field(default=1, ge=1, le=64)
    """Processes that share the port. One saturates about one core."""
    ingest_connections: int = Field(default=2, ge=1, le=64)
    """Database connections that commit points, of all workers together."""
    query_connections: int = Field(
        default_factory=lambda settled: _query_connections(settled.get("workers", 1)), ge=1, le=256
    )
    """Database connections for everything else, of all workers together: two for each at least,
    since a long read holds one and heartbeats may not wait for it. By default 4, or that many."""
    ingest_timeout_s: float = Field(default=30.0, ge=1, le=3_600)
    """A database that answers a flush's statement with silence for so long is given up:
    the connection is replaced and the flush tried again."""

    pending_bytes_max: ByteSize = Field(default=ByteSize(256 * 2**20), ge=4 * 2**20)
    """Admitted and uncommitted bytes, of all workers together; above it, reading stops."""
    stream_pending_bytes_max: ByteSize = Field(default=ByteSize(16 * 2**20), ge=2**20)
    """The same for one stream."""
    flush_points_max: int = Field(default=262_144, ge=8_192, le=4_194_304)
    """Points in one flush transaction: bounds its memory and its latency."""
    flush_linger_ms: float = Field(default=2.0, ge=0, le=1_000)
    """How long a free writer waits for company when nothing else is pending."""
    lookahead_bytes: ByteSize = Field(default=ByteSize(128 * 2**10), ge=2**16, le=4 * 2**20)
    """What HTTP/2 may send ahead; gRPC buffers up to twice that of a stream that nobody reads."""
    streams_max: int = Field(default=10_000, ge=1, le=1_000_000)
    """Streams open at once, of all workers together; further ones are told to retry."""
    drain_deadline_s: float = Field(default=30.0, ge=0, le=3_600)
    """How long a stopping gateway waits for its streams and commits."""
    start_deadline_s: float = Field(default=60.0, ge=0, le=3_600)
    """How long a starting gateway waits for its database."""

    auth: bool | None = None
    """Whether calls need a token. May be left out only when listening on loopback: off."""
    token_cache_s: float = Field(default=5.0, ge=0, le=300)
    """How long a verified token is believed without asking the database."""
    token_recheck_s: float = Field(default=30.0, gt=0, le=3_600)
    """How often an open stream's token is verified again."""
    reflection: bool = True
    """Whether authenticated callers may list the services (grpcurl needs it)."""

    tls_certificate: Path | None = None
    """PEM chain; with `tls_key` it turns TLS on. Both are re-read when they change."""
    tls_key: Path | None = None
    """PEM private key."""
    tls_client_ca: Path | None = None
    """PEM authorities; when set, clients must present a certificate of theirs."""

    log_format: Literal["console", "json"] = "console"
    """For people, or one JSON object a line."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe level that is logged."""

    experiment_name_pattern: re.Pattern[str] | None = None
    """What the names of new experiments must match as a whole, for example
    `[a-z0-9-]+/[a-z0-9-]+/[a-z0-9-]+` for team/project/kind. `Default` always may be."""
    lease_s: float = Field(default=120.0, ge=1, le=86_400)
    """A run that nobody has heard of for so long, without its having ended, is LOST."""
    search_refresh_s: float = Field(default=10.0, ge=0.1, le=3_600)
    """The most that what searches know of a live run's metrics may be behind."""

    compaction: bool = True
    """Whether small chunks are merged in the background."""
    compaction_idle_s: float = Field(default=30.0, ge=1, le=86_400)
    """How long points are left alone before they are merged: a following read that is
    stalled for longer has to begin anew."""
    cleanup: Annotated[tuple[CleanupRule, ...], BeforeValidator(_cleanup_rules)] = ()
    """What is deleted by itself: tables of the TOML file, or a JSON array in the environment, as
    `[{"experiment": "rec/ads/rank", "max_age": "90d", "keep_top": 10, "by": "metrics.ndcg:max"}]`.
    """
    cleanup_period_s: float = Field(default=3_600.0, ge=1)
    """How often `cleanup` is applied."""
    purge_grace_s: float = Field(default=2_592_000.0, ge=0)
    """How long a deleted run can be restored, by default 30 days; then it is purged."""
    upkeep_time_share_max: float = Field(default=0.4, ge=0.001, le=1)
    """The most of its time that a worker merges, and purges; it rests in between."""

    s3_bucket: str = ""
    """The bucket of artifacts; none turns them off."""
    s3_endpoint_url: EndpointUrl | None = None
    """An S3 server other than AWS."""
    s3_region: str = "us-east-1"
    """The bucket's region."""
    s3_access_key_id: str | None = Field(default=None, repr=False)
    """Unset: the standard AWS chain (environment, profile, instance role)."""
    s3_secret_access_key: str | None = Field(default=None, repr=False)
    """Goes with `s3_access_key_id`."""
    s3_addressing_style: Literal["auto", "path", "virtual"] = "auto"
    """How the bucket stands in URLs. auto: in the path with `s3_endpoint_url`, else in the host."""
    s3_public_endpoint_url: EndpointUrl | None = None
    """How clients reach the S3 server directly, when it differs from `s3_endpoint_url`."""
    s3_key_prefix: str = Field(default="headrace/", pattern=r"^([^/\s]+/)*$")
    """What every key begins with: empty, or ending in a slash."""
    s3_server_side_encryption: Literal["", "AES256", "aws:kms", "aws:kms:dsse"] = ""
    """Asked for with every object; empty leaves it to the bucket."""
    s3_kms_key_id: str = ""
    """The key for aws:kms; empty is the account's."""
    s3_storage_class: str = ""
    """For example STANDARD_IA; empty leaves it to the bucket."""

    artifact_direct: bool = True
    """Whether clients may move bytes straight to and from S3, by signed URLs."""
    artifact_signed_expiry_s: int = Field(default=3_600, ge=60, le=604_800)
    """How long a signed URL is valid: at least what one part takes."""
    artifact_parts_in_flight_max: int = Field(default=64, ge=1, le=4_096)
    """Parts and downloads that move at once, of all workers together: each way as many.
    Each holds about 2 MiB; further ones wait."""
    artifact_parts_per_upload_max: int = Field(default=8, ge=1, le=64)
    """The same for one upload or one artifact."""
    artifact_stall_timeout_s: float = Field(default=60.0, ge=1, le=3_600)
    """Without progress for so long, a transfer is given up."""
    artifact_upload_expiry_s: float = Field(default=86_400.0, ge=1)
    """Uploads without progress for so long are aborted, and their parts deleted."""

    @property
    def auth_required(self) -> bool:
        """Whether calls need a token."""
        return bool(self.auth)

    @property
    def tls(self) -> bool:
        """Whether gRPC speaks TLS."""
        return self.tls_certificate is not None

    @field_serializer("cleanup")
    def _written_rules(self, rules: tuple[CleanupRule, ...]) -> list[dict[str, str | int | None]]:
        """Write what is read: a worker gets its settings as JSON."""
        return [rule.written() for rule in rules]

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together")
        if self.tls_client_ca is not None and not self.tls:
            raise ValueError("tls_client_ca needs tls_certificate and tls_key")
        for name in ("tls_certificate", "tls_key", "tls_client_ca"):
            path = getattr(self, name)
            if path is not None and not path.is_file():
                raise ValueError(f"{name}: no such file: {path}")
        if self.auth is None and not _is_loopback(self.listen):
            raise ValueError(
                f"listen={self.listen} is reachable from other machines: set auth to true"
                " (and make tokens with `headrace-gateway token create`) or to false"
            )
        if self.dsn and self.embedded is not None:
            raise ValueError("dsn and embedded exclude each other")
        if self.ingest_connections < self.workers:
            raise ValueError(
                f"ingest_connections={self.ingest_connections} is too few for"
                f" workers={self.workers}: each worker needs at least one"
            )
        if self.query_connections < _QUERY_CONNECTIONS_PER_WORKER_MIN * self.workers:
            raise ValueError(
                f"query_connections={self.query_connections} is too few for"
                f" workers={self.workers}: each worker needs two, one while a long read holds the"
                f" other; set it to {_QUERY_CONNECTIONS_PER_WORKER_MIN * self.workers} or more, or"
                " leave it out"
            )
        if self.stream_pending_bytes_max > self.pending_bytes_max // self.workers:
            raise ValueError(
                f"stream_pending_bytes_max={self.stream_pending_bytes_max} is more than a worker's"
                f" share of pending_bytes_max ({self.pending_bytes_max // self.workers})"
            )
        return self

    def share(self, index: int) -> "Settings":
        """Return the settings of worker `index` (from 0): budgets divided, remainders first."""

        def part(total: int) -> int:
            return total // self.workers + (index < total % self.workers)

        return self.model_copy(
            update={
                "workers": 1,
                "embedded": None,  # the supervisor has it
                "ingest_connections": part(self.ingest_connections),
                "query_connections": part(self.query_connections),
                "pending_bytes_max": ByteSize(part(self.pending_bytes_max)),
                "streams_max": max(1, part(self.streams_max)),
                "artifact_parts_in_flight_max": max(1, part(self.artifact_parts_in_flight_max)),
            }
        )


def load(
    *,
    flags: Mapping[str, object],
    environment: Mapping[str, str],
    file: Path | None = None,
    assigned: Mapping[str, str] | None = None,
) -> Settings:
    """Return the settings.

    Args:
        flags: settings given on the command line, by name; None is not given.
        environment: the process's variables.
        file: a TOML file; None reads `headrace.toml` of the working directory if there is one.
        assigned: settings given by `--set NAME=VALUE`, which win over flags of their own.

    Raises:
        SettingsError: naming every problem and its flag, `--set`, variable or file.
    """
    problems: list[str] = []
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}

    def add(name: str, value: object, source: str) -> None:
        if name in Settings.model_fields:
            values[name], origin[name] = value, source
        else:
            problems.append(f"{source}: no such setting")

    for name, value in _read_file(file, problems).items():
        add(name, value, f"{file or DEFAULT_FILE}: {name}")
    for variable, value in environment.items():
        name = variable.removeprefix(PREFIX)
        if name not in (variable, "CONFIG") and not _FOREIGN.fullmatch(name):
            add(name.lower(), value, variable)
    for name, value in flags.items():
        if value is not None:
            add(name, value, "--" + name.replace("_", "-"))
    for name, text in (assigned or {}).items():
        add(name, text, f"--set {name}=…")
    try:
        settings = Settings(**values)
    except ValidationError as error:
        for item in error.errors(include_url=False):
            if item["type"] == "default_factory_not_called":
                continue  # what it would follow from is bad, and named
            name = str(item["loc"][0]) if item["loc"] else ""
            # A value may be a secret (dsn); its name and the rule say enough for those.
            given = f" (given: {item['input']!r})" if _is_shown(name) else ""
            source = origin.get(name, name)
            message = item["msg"].removeprefix("Value error, ")
            line = f"{source}: {message}{given}" if source else message
            if line not in problems:
                problems.append(line)
    if problems:
        raise SettingsError(problems)
    return settings


def _is_shown(name: str) -> bool:
    return name in Settings.model_fields and Settings.model_fields[name].repr


def _read_file(file: Path | None, problems: list[str]) -> dict[str, Any]:
    if file is None and not DEFAULT_FILE.is_file():
        return {}
    path = file or DEFAULT_FILE
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        problems.append(f"{path}: {error.strerror}")
    except ValueError as error:  # TOML and UTF-8 errors are both
        problems.append(f"{path}: {error}")
    return {}


def _is_loopback(address: str) -> bool:
    host, _ = split_address(address)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
