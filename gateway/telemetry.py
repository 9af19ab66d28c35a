"""Logs by structlog and metrics by prometheus_client.

The ingest path touches metrics once per flush, ack or stream, never per point.
With several workers prometheus_client keeps its values in memory-mapped files
under PROMETHEUS_MULTIPROC_DIR, which the supervisor sets in its workers'
environment before they import anything; the supervisor serves the sum. The
counters of a worker that died stay in the sum, its gauges do not.
"""

import logging
import sys
from pathlib import Path
from typing import Final, Literal
from wsgiref.simple_server import WSGIServer

import structlog
from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    start_http_server,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

_SECONDS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_POINTS: Final = (1, 8, 64, 512, 1_024, 4_096, 16_384, 65_536, 262_144, 1_048_576)


class Metrics:
    """Everything the gateway counts. Names carry their units; one instance, `METRICS`."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"headrace_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"headrace_{name}", text, registry=registry, multiprocess_mode="livesum")

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"headrace_{name}", text, registry=registry, buckets=buckets)

        self.points_accepted = counter("points_accepted", "Points committed.")
        self.points_late = counter("points_late", "Committed points with a late step.")
        self.points_repeated = counter("points_repeated", "Committed points with a repeated step.")
        self.points_rejected = counter(
            "points_rejected", "Points rejected for their content.", ("reason",)
        )
        self.batches = counter("batches", "Batches committed.")
        self.batches_discarded = counter(
            "batches_discarded", "Batches at or below their writer's watermark."
        )
        self.flush_points = histogram("flush_points", "Points of a flush transaction.", _POINTS)
        self.flush_seconds = histogram(
            "flush_seconds", "Seconds from BEGIN to the answer of COMMIT.", _SECONDS
        )
        self.flush_retries = counter(
            "flush_retries", "Flush transactions tried again, by cause.", ("cause",)
        )
        self.ack_seconds = histogram(
            "ack_seconds", "Seconds from a batch's arrival to its acknowledgement.", _SECONDS
        )
        self.pending_bytes = gauge("pending_bytes", "Admitted and uncommitted bytes.")
        self.streams = gauge("streams", "Open metric streams.")
        self.streams_paused = gauge("streams_paused", "Streams that are not read: over budget.")
        self.streams_refused = counter(
            "streams_refused", "Streams told to retry: over streams_max."
        )
        self.writers_fenced = counter("writers_fenced", "Streams ended by a newer one.")
        self.connections = gauge("connections", "Live database connections.")
        self.connections_budget = gauge("connections_budget", "The most there ever are.")
        self.artifact_bytes_received = counter(
            "artifact_bytes_received", "Bytes of parts and small files forwarded to S3."
        )
        self.artifact_bytes_sent = counter("artifact_bytes_sent", "Bytes of downloads.")
        self.artifact_bytes_deduplicated = counter(
            "artifact_bytes_deduplicated", "Bytes that the experiment had already."
        )
        self.artifact_uploads_expired = counter(
            "artifact_uploads_expired", "Uploads ended for lack of progress."
        )
        self.artifact_parts_active = gauge("artifact_parts_active", "Uploads that move now.")
        self.artifact_parts_waiting = gauge(
            "artifact_parts_waiting", "Uploads that wait: over artifact_parts_in_flight_max."
        )
        self.artifact_reads_active = gauge("artifact_reads_active", "Downloads that move now.")
        self.artifact_reads_waiting = gauge("artifact_reads_waiting", "Downloads that wait.")
        self.runs_lost = counter("runs_lost", "Runs that became LOST.")
        self.runs_refreshed = counter("runs_refreshed", "Runs whose search row was refreshed.")
        self.refreshes_failed = counter(
            "refreshes_failed", "Refreshes of a run's search row that failed; they are repeated."
        )
        self.refresh_seconds = counter(
            "refresh_seconds", "Seconds of database work of refreshing search rows."
        )
        self.chunks_merged = counter("chunks_merged", "Small chunks that compaction took out.")
        self.chunks_made_by_merging = counter(
            "chunks_made_by_merging", "Chunks that compaction put in their place."
        )
        self.runs_compacted = counter("runs_compacted", "Ended runs that are compacted.")
        self.compaction_seconds = counter(
            "compaction_seconds", "Seconds of database work of compaction."
        )
        self.runs_cleaned_up = counter("runs_cleaned_up", "Runs that cleanup rules deleted.")
        self.runs_purged = counter("runs_purged", "Deleted runs that were purged.")
        self.rows_purged = counter("rows_purged", "Rows that purges removed.")
        self.purge_seconds = counter("purge_seconds", "Seconds of database work of purges.")
        self.calls = counter("calls", "Calls ended, by method and status.", ("method", "code"))
        self.workers = gauge("workers", "Worker processes.")


disable_created_metrics()  # type: ignore[no-untyped-call]  # their creation times would double the exposition
METRICS: Final = Metrics()


def configure_logs(*, format_: Literal["console", "json"], level: str) -> None:
    """Send logs to stderr: for people, or one JSON object a line. Once, at start."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: list[structlog.typing.Processor]
    if format_ == "json":
        renderer = [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer()]
    else:
        renderer = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*shared, *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
    # Libraries log through the standard module; their warnings are ours to show.
    logging.basicConfig(
        stream=sys.stderr,
        level=max(number, logging.WARNING),
        format="%(levelname)s %(name)s %(message)s",
    )


def serve_metrics(host: str, port: int, *, directory: Path | None = None) -> tuple[WSGIServer, int]:
    """Serve metrics over HTTP from a thread; return the server and its port.

    Args:
        host: where to listen.
        port: 0 takes a free one.
        directory: sum the workers' files in it; None serves this process's own values.

    Raises:
        OSError: the address cannot be listened on.
    """
    registry = REGISTRY
    if directory is not None:
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=str(directory))  # type: ignore[no-untyped-call]
    server, _ = start_http_server(port, addr=host, registry=registry)
    return server, server.server_port


def forget_worker(pid: int, directory: Path) -> None:
    """Take the gauges of a worker that has ended out of the sum."""
    mark_process_dead(pid, path=str(directory))  # type: ignore[no-untyped-call]
