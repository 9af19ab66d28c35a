"""Rewrites tables and charts of the pages from a result: `python -m benchmarks.page`.

The pages are written by hand but for what stands between a marker
`<!-- table: NAME -->` and `<!-- end -->`. A figure that the result does not
hold is shown as "not measured": a page never keeps a number of another run.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final

import typer

from benchmarks import charts
from benchmarks.load import Load
from benchmarks.results import TARGETS, shown
from benchmarks.sweeps import (
    BATCH_POINTS,
    MIXES,
    OFFERED_POINTS_PER_S,
    STREAMS,
    offered_batch_points,
)

ROOT: Final = Path(__file__).parent.parent.resolve()
PAGES: Final = tuple(
    ROOT / name
    for name in ("docs/benchmarks.md", "docs/performance.md", "docs/reliability.md", "README.md")
)
LATEST: Final = Path(__file__).parent.resolve() / "results" / "latest.json"
FAULTS: Final = LATEST.with_name("faults.json")
"""What `make faults` writes."""
_MARKED: Final = re.compile(r"(<!-- table: (?P<name>[a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

Figures = Mapping[str, float]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _run(document: Mapping[str, object]) -> str:
    described, versions, postgres, parameters = (
        document[name] for name in ("machine", "versions", "postgres", "parameters")
    )
    assert isinstance(described, dict)
    assert isinstance(versions, dict)
    assert isinstance(postgres, dict)
    assert isinstance(parameters, dict)
    load = described.get("load_average_before")
    failures = document.get("failures")
    assert isinstance(failures, dict)
    settings = ", ".join(
        f"`{name}` {postgres[name]}" for name in ("fsync", "full_page_writes", "synchronous_commit")
    )
    return (
        f"Measured {document['measured_at']} at commit `{versions['commit']}` on"
        f" {described['cores']} cores ({described['cpu']}), PostgreSQL {postgres['server_version']}"
        f" with {settings}; up to {parameters['rounds']} interleaved rounds, medians."
        + (f" Load average before it: {load:.1f}." if isinstance(load, float) else "")
        + (f" Could not be measured: {', '.join(failures)}." if failures else "")
        + f" The result: {document['file']}.\n"
    )


def _ways(figures: Figures) -> str:
    shows = "points per second of Headrace, PostgreSQL's own ways and other trackers"
    chart = _chart("rates", shows, figures, "ingest_raw_64x1000_points_per_s")
    own = figures.get("ingest_raw_64x1000_points_per_s")
    rows = (
        ("Headrace, 64 raw streams", "ingest_raw_64x1000_points_per_s", "bytes_per_point"),
        ("Headrace, 64 Python clients", "ingest_clients_64_points_per_s", ""),
        ("VictoriaMetrics, JSON lines", "victoriametrics_json_points_per_s", ""),
        ("VictoriaMetrics, line protocol", "victoriametrics_line_protocol_points_per_s", ""),
        (
            "binary COPY of rows, no index",
            "copy_rows_unindexed_points_per_s",
            "copy_rows_unindexed_bytes_per_point",
        ),
        (
            "binary COPY of rows, indexed",
            "copy_rows_indexed_points_per_s",
            "copy_rows_indexed_bytes_per_point",
        ),
        (
            "… indexed, over two connections",
            "copy_rows_indexed_2_connections_points_per_s",
            "",
        ),
        ("`copy_records_to_table`, no index", "copy_records_unindexed_points_per_s", ""),
        ("`copy_records_to_table`, indexed", "copy_records_indexed_points_per_s", ""),
        ("staging table and ON CONFLICT", "staging_on_conflict_points_per_s", ""),
        ("`executemany`, indexed", "executemany_points_per_s", ""),
        ("MLflow, batches of 1,000", "mlflow_log_batch_points_per_s", "mlflow_bytes_per_point"),
        ("MLflow client, asynchronous, 8 jobs", "mlflow_async_8_jobs_points_per_s", ""),
        ("MLflow, a call a point", "mlflow_log_metric_points_per_s", ""),
    )
    return (
        table(
            ("way", "points/s", "Headrace is", "bytes/point"),
            [
                (
                    label,
                    shown(rate := figures.get(name)),
                    f"{own / rate:,.1f} x" if own and rate else "",
                    shown(figures[size]) if size in figures else "",
                )
                for label, name, size in rows
            ],
        )
        + chart
    )


def _promises(figures: Figures) -> str:
    rows = []
    for target in TARGETS:
        value = figures.get(target.figure)
        mark = "" if value is None else "kept" if target.is_met(value) else "**missed**"
        bound = f"{'≥' if target.at_least else '<'} {shown(target.bound)}"
        rows.append((target.claim, bound, shown(value), mark))
    return table(("promise", "bound", "measured", ""), rows)


def _mlflow(figures: Figures) -> str:
    return table(
        ("jobs", "batches: points/s", "p99", "failed calls", "a call a point: points/s", "p99"),
        [
            (
                str(jobs),
                shown(figures.get(f"mlflow_log_batch_{jobs}_jobs_points_per_s")),
                shown(figures.get(f"mlflow_log_batch_{jobs}_jobs_p99_ms"), "ms"),
                shown(figures.get(f"mlflow_log_batch_{jobs}_jobs_failed_calls")),
                shown(figures.get(f"mlflow_log_metric_{jobs}_jobs_points_per_s")),
                shown(figures.get(f"mlflow_log_metric_{jobs}_jobs_p99_ms"), "ms"),
            )
            for jobs in (1, 8, 32, 64)
        ],
    )


def _crowd(figures: Figures) -> str:
    rows = []
    for workers, clients in ((1, 50), (4, 500)):
        name = f"mlflow_crowd_{clients}_clients_{workers}_workers"
        rows.append(
            (
                f"MLflow, {workers} worker{'s' * (workers > 1)}, {clients} clients",
                shown(figures.get(f"{name}_points_per_s")),
                f"{shown(figures.get(f'{name}_failed_calls'))}"
                f" of {shown(figures.get(f'{name}_calls'))} calls",
                shown(figures.get(f"{name}_slowest_ms"), "ms"),
                shown(figures.get(f"{name}_connections")),
            )
        )
    for streams in (64, 256, 1_000, 5_000):
        name = f"sweep_streams_{streams}"
        rows.append(
            (
                f"Headrace, {streams:,} streams",
                shown(figures.get(f"{name}_points_per_s")),
                "none" if f"{name}_points_per_s" in figures else "",
                shown(figures.get(f"{name}_ack_max_ms"), "ms"),
                shown(figures.get(f"{name}_connections")),
            )
        )
    return table(("", "points/s", "failed", "slowest answer", "database connections"), rows)


def _chart(name: str, shows: str, figures: Figures, figure: str) -> str:
    """Return the link to a chart, if the result has what it shows."""
    return f"\n![{shows}](charts/{name}.svg)\n" if figure in figures else ""


def _streams(figures: Figures) -> str:
    shows = "points per second and memory against streams"
    chart = _chart("streams", shows, figures, "sweep_streams_1_points_per_s")
    return (
        table(
            ("streams", "points/s", "ack p99", "gateway memory", "database connections"),
            [
                (
                    f"{streams:,}",
                    shown(figures.get(f"sweep_streams_{streams}_points_per_s")),
                    shown(figures.get(f"sweep_streams_{streams}_ack_p99_ms"), "ms"),
                    shown(figures.get(f"sweep_streams_{streams}_rss_mb"), "MB"),
                    shown(figures.get(f"sweep_streams_{streams}_connections")),
                )
                for streams in STREAMS
            ],
        )
        + chart
    )


def _batches(figures: Figures) -> str:
    return table(
        ("points a message", "points/s", "messages/s"),
        [
            (
                f"{points:,}",
                shown(figures.get(f"sweep_batch_{points}_points_per_s")),
                shown(figures.get(f"sweep_batch_{points}_messages_per_s")),
            )
            for points in BATCH_POINTS
        ],
    )


def _offered(figures: Figures) -> str:
    second = f"offered_{OFFERED_POINTS_PER_S[1]}_points_per_s"
    chart = _chart("offered", "latency against offered load", figures, second)
    return (
        table(
            ("offered points/s", "points a message", "reached", "ack p50", "ack p99"),
            [
                (
                    shown(offered),
                    f"{offered_batch_points(offered, Load().series):,}",
                    shown(figures[f"offered_{offered}_points_per_s"]),
                    shown(figures[f"offered_{offered}_ack_p50_ms"], "ms"),
                    shown(figures[f"offered_{offered}_ack_p99_ms"], "ms"),
                )
                for offered in OFFERED_POINTS_PER_S
                if f"offered_{offered}_points_per_s" in figures
            ],
        )
        + chart
    )


def _disorder(figures: Figures) -> str:
    return table(
        ("traffic", "points/s", "x ordered"),
        [
            (
                name,
                shown(figures.get(f"mix_{name}_points_per_s")),
                shown(figures.get(f"mix_{name}_ratio")),
            )
            for name in MIXES
        ],
    )


def _log_calls(figures: Figures) -> str:
    return table(
        ("one call, 10 scalars", "median", "p99.9"),
        [
            (
                label,
                shown(figures.get(f"log_call_{name}_us"), "µs"),
                shown(figures.get(f"log_call_{name}_p999_us"), "µs"),
            )
            for label, name in (
                ("Headrace", "headrace"),
                ("tensorboardX, ten calls", "tensorboardx"),
                ("trackio", "trackio"),
                ("wandb, offline", "wandb_offline"),
                ("MLflow, asynchronous", "mlflow_log_metrics_async"),
                ("MLflow", "mlflow_log_metrics"),
            )
        ],
    )


def _rest(figures: Figures) -> str:
    rows = (
        ("one run, 50,000 keys a step", "ingest_wide_points_per_s", "points/s"),
        ("ack p99 at 100,000 points/s, 64 streams", "ack_p99_ms_at_100k", "ms"),
        ("`--workers 1`", "workers_1_points_per_s", "points/s"),
        ("`--workers 2`", "workers_2_points_per_s", "points/s"),
        ("read 50,000 points of one series, alone", "read_whole_p50_ms", "ms"),
        ("… beside 64 saturated streams", "read_whole_beside_writes_p50_ms", "ms"),
        ("4 series at 1,000 points, alone", "read_4x1000_p50_ms", "ms"),
        ("… beside 64 saturated streams", "read_4x1000_beside_writes_p50_ms", "ms"),
        ("ingest beside these reads", "ingest_beside_reads_points_per_s", "points/s"),
        ("5,000 idle streams, one gateway process: memory", "rss_mb_5000_streams", "MB"),
        ("… database connections", "connections_5000_streams", ""),
        ("… one more writer's ack p99", "ack_p99_ms_beside_5000_streams", "ms"),
        ("points in a database that has grown", "growth_points", ""),
        ("ingest into an empty one, in turns", "ingest_before_growth_points_per_s", "points/s"),
        ("ingest into the grown one", "ingest_after_growth_end_points_per_s", "points/s"),
    )
    return table(("", ""), [(label, shown(figures.get(name), unit)) for label, name, unit in rows])


def _summary(figures: Figures) -> str:
    def of(name: str, unit: str = "") -> str:
        return shown(figures.get(name), unit)

    return table(
        ("", "Headrace", "raw binary COPY of rows"),
        [
            (
                "64 streams",
                of("ingest_raw_64x1000_points_per_s", "points/s"),
                f"{of('copy_rows_indexed_points_per_s')} indexed,"
                f" {of('copy_rows_unindexed_points_per_s')} without an index",
            ),
            ("64 Python trainers", of("ingest_clients_64_points_per_s", "points/s"), ""),
            ("one run, 50,000 keys a step", of("ingest_wide_points_per_s", "points/s"), ""),
            ("acknowledgement at 100,000 points/s, p99", of("ack_p99_ms_at_100k", "ms"), ""),
            (
                "`log()` of 10 scalars",
                f"{of('log_call_10_scalars_us', 'µs')} back to back,"
                f" {of('log_call_10_scalars_paced_us', 'µs')} once a millisecond",
                "",
            ),
            (
                "stored",
                of("bytes_per_point", "bytes/point"),
                f"{of('copy_rows_indexed_bytes_per_point')} indexed,"
                f" {of('copy_rows_unindexed_bytes_per_point')} without",
            ),
        ],
    ) + (
        "\n64 streams are"
        f" {of('ratio_raw_to_copy_indexed')} times indexed COPY,"
        f" {of('ratio_raw_to_victoriametrics')} times VictoriaMetrics' faster text import, and"
        f" {of('ratio_raw_to_mlflow_log_batch')} times MLflow's batches of 1,000.\n"
    )


def _spread(document: Mapping[str, object]) -> str:
    figures, spread = document["figures"], document["spread"]
    assert isinstance(figures, dict)
    assert isinstance(spread, dict)

    def ends(name: str) -> str:
        found = spread.get(name, {"rounds": 0})
        if found["rounds"] < 2:
            return "one round" if found["rounds"] else ""
        return f"{shown(found['low'])} to {shown(found['high'])}, {found['rounds']} rounds"

    rows = (
        ("64 raw streams, 1,000-point batches", "ingest_raw_64x1000_points_per_s", "points/s"),
        ("64 Python trainers, spool and sender", "ingest_clients_64_points_per_s", "points/s"),
        ("one run, 50,000 keys a step", "ingest_wide_points_per_s", "points/s"),
        ("raw binary COPY of rows, no index", "copy_rows_unindexed_points_per_s", "points/s"),
        (
            "the same over two connections",
            "copy_rows_unindexed_2_connections_points_per_s",
            "points/s",
        ),
        ("raw binary COPY of rows, indexed", "copy_rows_indexed_points_per_s", "points/s"),
        (
            "the same over two connections",
            "copy_rows_indexed_2_connections_points_per_s",
            "points/s",
        ),
        ("`executemany`, indexed", "executemany_points_per_s", "points/s"),
        ("acknowledgement at 100,000 points/s, p99", "ack_p99_ms_at_100k", "ms"),
        ("memory of an idle stream", "idle_stream_bytes", "bytes"),
        ("`log()` of 10 scalars back to back, median", "log_call_10_scalars_us", "µs"),
        ("the same once a millisecond, as in training", "log_call_10_scalars_paced_us", "µs"),
        ("stored, indexes and summaries included", "bytes_per_point", "bytes/point"),
        ("the same points as indexed rows", "copy_rows_indexed_bytes_per_point", "bytes/point"),
    )
    return table(
        ("", "median", "low to high"),
        [(label, shown(figures.get(name), unit), ends(name)) for label, name, unit in rows],
    )


def _faults(_: Mapping[str, object]) -> str:
    document = json.loads(FAULTS.read_text(encoding="utf-8"))
    machine = document["machine"]
    said = (
        f"Run {document['measured_at']} at commit `{document['commit']}` on"
        f" {machine['cores']} cores ({machine['cpu']}): {document['acts']} acts of random"
        " violence.\n\n"
    )

    def cell(value: float | None, unit: str = "") -> str:
        return "" if value is None else f"{value:.1f}{unit}" if unit else f"{value:,}"

    return said + table(
        ("fault", "times", "points of its run", "lost", "doubled", "recovery", "seed"),
        [
            (
                row["fault"],
                *(cell(row[name]) for name in ("times", "points", "lost", "doubled")),
                cell(row["recovery_s"], " s"),
                "" if row["seed"] is None else str(row["seed"]),
            )
            for row in document["rows"]
        ],
    )


_TABLES: Final[Mapping[str, Callable[[Figures], str]]] = {
    "summary": _summary,
    "ways": _ways,
    "promises": _promises,
    "mlflow": _mlflow,
    "crowd": _crowd,
    "streams": _streams,
    "batches": _batches,
    "offered": _offered,
    "disorder": _disorder,
    "log-calls": _log_calls,
    "rest": _rest,
}


_OF_DOCUMENT: Final[Mapping[str, Callable[[Mapping[str, object]], str]]] = {
    "run": _run,
    "spread": _spread,
    "faults": _faults,
}


def rewrite(text: str, document: Mapping[str, object]) -> str:
    """Return the page with the tables of a result.

    Raises:
        KeyError: the page has a marker of no table.
    """
    figures = document["figures"]
    assert isinstance(figures, dict)

    def replace(match: re.Match[str]) -> str:
        name = match["name"]
        body = _OF_DOCUMENT[name](document) if name in _OF_DOCUMENT else _TABLES[name](figures)
        return f"{match[1]}{body}{match[3]}"

    return _MARKED.sub(replace, text)


def main(
    result: Annotated[Path, typer.Option(help="JSON of `python -m benchmarks --full`.")] = LATEST,
) -> None:
    """Rewrite the tables of the pages, and the charts of docs/benchmarks.md."""
    document = json.loads(result.read_text(encoding="utf-8"))
    kept = result.resolve() != LATEST  # which the next run replaces
    result = result.resolve()
    name = str(result.relative_to(ROOT) if result.is_relative_to(ROOT) else result.name)
    document["file"] = f"[{name}](../{name})" if kept else f"`{name}`"
    for page in PAGES:
        text = rewrite(page.read_text(encoding="utf-8"), document)
        page.write_text(text, encoding="utf-8")
        typer.echo(f"wrote {page.relative_to(ROOT)}")
    for path in charts.draw_page(document, ROOT / "docs" / "charts"):
        typer.echo(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    typer.run(main)
