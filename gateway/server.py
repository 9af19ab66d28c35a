"""One gateway process: stores, engine and services, wired, served and drained.

`serve` runs until a signal asks it to stop. A drain goes from the outside in:
health says NOT_SERVING, clients are asked to reconnect, what was admitted is
committed, then the server and the database connections close. A second signal
skips the waiting; what was not acknowledged is then with its clients still.
"""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from headrace.v1 import (
    artifact_service_pb2,
    artifact_service_pb2_grpc,
    experiment_service_pb2,
    experiment_service_pb2_grpc,
    metric_service_pb2,
    run_service_pb2,
    run_service_pb2_grpc,
)
from prometheus_client import Counter

from gateway.artifacts.precedence import Precedence
from gateway.artifacts.wiring import Artifacts, open_artifacts
from gateway.certificates import server_credentials
from gateway.config import Settings, split_address
from gateway.doctor import log_findings
from gateway.domain.errors import HeadraceError, Reason, StoreUnavailableError
from gateway.housekeeping import (
    cleanup_job,
    compaction_job,
    gap_max_s,
    liveness_jobs,
    purge_job,
    run_jobs,
)
from gateway.ingest.engine import IngestEngine, IngestSettings
from gateway.process import forget_startup_objects, keep_freed_memory
from gateway.rpc.artifact_service import ArtifactService
from gateway.rpc.authentication import Authenticator
from gateway.rpc.experiment_service import ExperimentService
from gateway.rpc.interceptors import RECEIVE_BYTES_MAX, CallInterceptor
from gateway.rpc.metric_read import MetricReadService
from gateway.rpc.metric_service import metric_handlers
from gateway.rpc.metric_write import MetricWriteService
from gateway.rpc.run_service import RunService
from gateway.rpc.workspace_service import WorkspaceService
from gateway.rpc.workspaces import WorkspaceChoice
from gateway.store import migrate
from gateway.store.cleanup import CleanupStore
from gateway.store.compaction import CompactionStore
from gateway.store.connections import Database
from gateway.store.experiments import ExperimentNames, ExperimentStore
from gateway.store.liveness import LivenessStore
from gateway.store.purge import PurgeStore
from gateway.store.reading import MetricReading
from gateway.store.runs import RunStore
from gateway.store.search import SearchStore
from gateway.store.tokens import TokenStore
from gateway.store.workspaces import WorkspaceStore
from gateway.store.writers import WriterStore
from gateway.telemetry import METRICS
from gateway.upkeep.cleaner import Cleaner
from gateway.upkeep.compactor import Compactor
from gateway.upkeep.purger import Purger
from gateway.upkeep.throttle import Throttle

_LOG = structlog.get_logger(__name__)

_GAUGE_PERIOD_S: Final = 1.0
_RETRY_PERIOD_S: Final = 0.5
_STOP_GRACE_S: Final = 2.0  # for unary calls and reads in flight when the engine is drained
_READS_MAX: Final = 2  # snapshots held at a time: each costs memory and a connection
_STREAMS_PER_CONNECTION_MAX: Final = 1_000
SERVICE_NAMES: Final = (
    artifact_service_pb2.DESCRIPTOR.services_by_name["ArtifactService"].full_name,
    experiment_service_pb2.DESCRIPTOR.services_by_name["ExperimentService"].full_name,
    experiment_service_pb2.DESCRIPTOR.services_by_name["WorkspaceService"].full_name,
    metric_service_pb2.DESCRIPTOR.services_by_name["MetricService"].full_name,
    run_service_pb2.DESCRIPTOR.services_by_name["RunService"].full_name,
)


class StartError(Exception):
    """The gateway cannot start; the message says why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """What the services stand on, made from one `Database`."""

    database: Database
    runs: RunStore
    experiments: ExperimentStore
    workspaces: WorkspaceStore
    searches: SearchStore
    liveness: LivenessStore
    tokens: TokenStore
    metrics: WriterStore
    reading: MetricReading
    artifacts: Artifacts | None


async def prepare_database(settings: Settings) -> list[migrate.Migration]:
    """Migrate the database, waiting for it at most `start_deadline_s`; once per gateway.

    Raises:
        HeadraceError: STORE_UNAVAILABLE, or a migration failed.
    """
    deadline = time.monotonic() + settings.start_deadline_s
    while True:
        try:
            return await migrate.migrate(settings.dsn)
        except HeadraceError as error:
            if error.reason is not Reason.STORE_UNAVAILABLE or time.monotonic() > deadline:
                raise
            _LOG.warning("waiting for the database", error=error.message)
            await asyncio.sleep(_RETRY_PERIOD_S)


async def serve(
    settings: Settings,
    *,
    share_port: bool,
    on_ready: Callable[[int], None],
    worker: int = 0,
) -> bool:
    """Serve until SIGTERM or SIGINT, then drain.

    Args:
        settings: this process's share of the budgets.
        share_port: whether other processes listen on the same port.
        on_ready: is called with the port when calls are answered.
        worker: this process's number, for its database connections' names.

    Returns:
        Whether everything admitted was committed before the end.

    Raises:
        StartError: the port or a certificate cannot be used.
        StoreUnavailableError: the database is not there.
    """
    stopping, hurrying = asyncio.Event(), asyncio.Event()
    _on_signals(stopping, hurrying)
    keep_freed_memory()
    database = await _connect_unless(stopping, settings, worker)
    if database is None:
        return True
    async with _stores(settings, database) as stores:
        engine = IngestEngine(
            stores.metrics,
            settings=IngestSettings(
                pending_bytes_max=settings.pending_bytes_max,
                stream_pending_bytes_max=settings.stream_pending_bytes_max,
                flush_points_max=settings.flush_points_max,
                flush_linger_ms=settings.flush_linger_ms,
                streams_max=settings.streams_max,
            ),
        )
        probes = health.aio.HealthServicer()
        server = _server(settings, stores, share_port=share_port)
        health_pb2_grpc.add_HealthServicer_to_server(probes, server)
        _add_services(server, stores, engine, settings)
        if settings.reflection:
            names = (*SERVICE_NAMES, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, server)
        port = _listen(server, settings)
        await engine.start()
        await server.start()
        for name in SERVICE_NAMES:
            await probes.set(name, health_pb2.HealthCheckResponse.SERVING)
        gauges = asyncio.create_task(_keep_gauges(stores.database, engine))
        cleanup = asyncio.create_task(_clean_up(stores))
        checkup = asyncio.create_task(_check_up(settings, stores.database, worker))
        housekeeping = asyncio.create_task(_keep_house(settings, stores))
        try:
            forget_startup_objects()
            on_ready(port)
            await stopping.wait()
            _LOG.info("draining", streams=engine.streams, deadline_s=settings.drain_deadline_s)
            await probes.enter_graceful_shutdown()
            drained = await _drain(engine, settings.drain_deadline_s, hurrying)
        finally:
            gauges.cancel()
            cleanup.cancel()
            checkup.cancel()
            housekeeping.cancel()
            await server.stop(0 if hurrying.is_set() else _STOP_GRACE_S)
            await engine.close()
        _LOG.info("stopped", drained=drained)
        return drained


def _add_services(
    server: grpc.aio.Server, stores: Stores, engine: IngestEngine, settings: Settings
) -> None:
    """Register every service; their methods must be in `rpc.permissions`."""
    artifacts = ArtifactService(
        stores.artifacts,
        Precedence(engine.longest_wait_s),
        stall_timeout_s=settings.artifact_stall_timeout_s,
        upload_expiry_s=settings.artifact_upload_expiry_s,
        signed_expiry_s=settings.artifact_signed_expiry_s,
    )
    artifact_service_pb2_grpc.add_ArtifactServiceServicer_to_server(artifacts, server)
    run_service_pb2_grpc.add_RunServiceServicer_to_server(
        RunService(stores.runs, stores.searches), server
    )
    experiment_service_pb2_grpc.add_ExperimentServiceServicer_to_server(
        ExperimentService(stores.experiments, stores.searches), server
    )
    experiment_service_pb2_grpc.add_WorkspaceServiceServicer_to_server(
        WorkspaceService(stores.workspaces), server
    )
    metrics = metric_handlers(MetricWriteService(engine), MetricReadService(stores.reading))
    server.add_generic_rpc_handlers((metrics,))


@contextlib.asynccontextmanager
async def _stores(settings: Settings, database: Database) -> AsyncIterator[Stores]:
    names = ExperimentNames(pattern=settings.experiment_name_pattern)
    try:
        async with open_artifacts(settings, database) as artifacts:
            yield Stores(
                database=database,
                runs=RunStore(database, names),
                experiments=ExperimentStore(database, names),
                workspaces=WorkspaceStore(database),
                searches=SearchStore(database),
                liveness=LivenessStore(
                    database, lease_s=settings.lease_s, gap_max_s=gap_max_s(settings.lease_s)
                ),
                tokens=TokenStore(database),
                metrics=WriterStore(database),
                # One connection stays for calls that are over soon; settings have two at least.
                reading=MetricReading(
                    database, reads_max=min(_READS_MAX, settings.query_connections - 1)
                ),
                artifacts=artifacts,
            )
    finally:
        await database.close()


async def _connect_unless(
    stopping: asyncio.Event, settings: Settings, worker: int
) -> Database | None:
    """Connect; None when a signal comes first."""
    connecting = asyncio.create_task(_connect(settings, worker))
    told = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait({connecting, told}, return_when=asyncio.FIRST_COMPLETED)
        return await connecting if connecting.done() else None
    finally:
        connecting.cancel()
        told.cancel()
        await asyncio.wait({connecting, told})


async def _connect(settings: Settings, worker: int) -> Database:
    deadline = time.monotonic() + settings.start_deadline_s
    while True:
        try:
            return await Database.connect(
                settings.dsn,
                ingest_connections=settings.ingest_connections,
                query_connections=settings.query_connections,
                ingest_timeout_s=settings.ingest_timeout_s,
                application_name=f"headrace-gateway/{worker}",
            )
        except StoreUnavailableError as error:
            if time.monotonic() > deadline:
                raise
            _LOG.warning("waiting for the database", error=error.message)
            await asyncio.sleep(_RETRY_PERIOD_S)


def _server(settings: Settings, stores: Stores, *, share_port: bool) -> grpc.aio.Server:
    authenticator = Authenticator(
        stores.tokens if settings.auth_required else None,
        cache_s=settings.token_cache_s,
        clock=time.monotonic,
    )
    workspaces = WorkspaceChoice(
        stores.workspaces, cache_s=settings.token_cache_s, clock=time.monotonic
    )
    return grpc.aio.server(
        interceptors=[
            CallInterceptor(authenticator, workspaces, recheck_s=settings.token_recheck_s)
        ],
        options=[
            # gRPC's default is to share: two gateways would silently split one port.
            ("grpc.so_reuseport", int(share_port)),
            # By default an unread stream buffers 4 MiB; this is the memory formula's term.
            ("grpc.http2.bdp_probe", 0),
            ("grpc.http2.lookahead_bytes", int(settings.lookahead_bytes)),
            ("grpc.max_receive_message_length", RECEIVE_BYTES_MAX),
            ("grpc.max_concurrent_streams", _STREAMS_PER_CONNECTION_MAX),
            # A dead client is noticed within 80 s; living ones may ping every 20 s.
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.keepalive_timeout_ms", 20_000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ],
    )


def _listen(server: grpc.aio.Server, settings: Settings) -> int:
    try:
        if settings.tls_certificate is not None and settings.tls_key is not None:
            credentials = server_credentials(
                settings.tls_certificate, settings.tls_key, settings.tls_client_ca
            )
            return server.add_secure_port(settings.listen, credentials)
        return server.add_insecure_port(settings.listen)
    except (RuntimeError, OSError) as error:
        host, port = split_address(settings.listen)
        raise StartError(f"cannot listen on {host} port {port}: {error}") from error


async def _drain(engine: IngestEngine, deadline_s: float, hurrying: asyncio.Event) -> bool:
    drain = asyncio.create_task(engine.drain(deadline_s))
    hurry = asyncio.create_task(hurrying.wait())
    try:
        await asyncio.wait({drain, hurry}, return_when=asyncio.FIRST_COMPLETED)
        return drain.done() and drain.result()
    finally:
        drain.cancel()
        hurry.cancel()


async def _clean_up(stores: Stores) -> None:
    if stores.artifacts is not None:
        await stores.artifacts.cleanup.run()


async def _check_up(settings: Settings, database: Database, worker: int) -> None:
    """Log what the doctor finds, once a gateway; whatever it is, the gateway serves."""
    if worker == 0:
        try:
            await log_findings(settings, database)
        except Exception as error:  # the doctor must not kill the patient
            _LOG.warning("the doctor failed", error=repr(error))


async def _keep_gauges(database: Database, engine: IngestEngine) -> None:
    """Show what moves all the time once a second, in place of on every change."""
    METRICS.workers.set(1)  # summed over all of them
    METRICS.connections_budget.set(database.connections_budget)
    while True:
        METRICS.connections.set(database.connections_live)
        METRICS.pending_bytes.set(engine.pending_bytes)
        METRICS.streams.set(engine.streams)
        METRICS.streams_paused.set(engine.streams_waiting)
        await asyncio.sleep(_GAUGE_PERIOD_S)


async def _keep_house(settings: Settings, stores: Stores) -> None:
    """Do what is to be done at intervals, until cancelled."""
    jobs = liveness_jobs(
        stores.liveness,
        lease_s=settings.lease_s,
        refresh_s=settings.search_refresh_s,
        # Searches are promised its result in time, so it may take more than other upkeep.
        throttle=Throttle(time_share_max=0.8, seconds=METRICS.refresh_seconds),
    )
    if settings.compaction:
        compactor = Compactor(
            CompactionStore(stores.database),
            idle_s=settings.compaction_idle_s,
            throttle=_throttle(settings, METRICS.compaction_seconds),
        )
        jobs.append(compaction_job(compactor, idle_s=settings.compaction_idle_s))
    if settings.cleanup:
        cleaner = Cleaner(CleanupStore(stores.database))
        jobs.append(cleanup_job(cleaner, settings.cleanup, period_s=settings.cleanup_period_s))
    purger = Purger(
        PurgeStore(stores.database),
        grace_s=settings.purge_grace_s,
        throttle=_throttle(settings, METRICS.purge_seconds),
    )
    artifacts = stores.artifacts
    let_go = (lambda: None) if artifacts is None else artifacts.cleanup.wake
    jobs.append(purge_job(purger, let_go=let_go))
    await run_jobs(jobs)


def _throttle(settings: Settings, seconds: Counter) -> Throttle:
    return Throttle(time_share_max=settings.upkeep_time_share_max, seconds=seconds)


def _on_signals(stopping: asyncio.Event, hurrying: asyncio.Event) -> None:
    def handle() -> None:
        (hurrying if stopping.is_set() else stopping).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, handle)
