"""What both Python runners share: the protocol, unary calls by generated stubs, the log steps."""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import grpc
from google.protobuf.json_format import ParseDict
from google.rpc import error_details_pb2, status_pb2
from headrace.v1 import (
    metric_service_pb2,
    metric_service_pb2_grpc,
    run_service_pb2,
    run_service_pb2_grpc,
)

CALL_DEADLINE_S: Final = 30.0


class RunnerError(Exception):
    """A call failed; `reason` is what the outcome says."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Writer(Protocol):
    """A writer of the client that is tested."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log one record."""

    def flush(self, deadline_s: float) -> None:
        """Wait until everything is acknowledged."""

    def finish(self, deadline_s: float) -> None:
        """Finish."""

    def close(self) -> None:
        """Drop it as a crash would."""

    def report(self) -> dict[str, Any]:
        """Return what the protocol calls a report."""


def reason_of(error: Any) -> str:
    """Return the reason of a failed call; the status's name when it has none."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info):
                    return str(info.reason)
    name: str = error.code().name
    return name


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What the runner is told to talk to, and how."""

    address: str
    token: str
    tls_ca: str | None

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call carries."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    def channel(self, options: Sequence[tuple[str, int]] = ()) -> grpc.Channel:
        """Connect, by TLS when the address says so."""
        options = [("grpc.enable_http_proxy", 0), *options]
        host = self.address.removeprefix("https://")
        if host == self.address:
            return grpc.insecure_channel(host, options=options)
        authorities = Path(self.tls_ca).read_bytes() if self.tls_ca else None
        return grpc.secure_channel(host, grpc.ssl_channel_credentials(authorities), options=options)


def spelt(value: float) -> float | str:
    """Return a value as the protocol writes it."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def records(step: Mapping[str, Any]) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield the log calls of a `log` step."""
    if "points" in step:
        for position, values in step["points"]:
            yield position, {key: float(value) for key, value in values.items()}
        return
    keys = step["keys"]
    names = [f"key/{index}" for index in range(keys)] if isinstance(keys, int) else keys
    for position in range(step["first_step"], step["first_step"] + step["count"]):
        yield position, {name: position + index / 8 for index, name in enumerate(names)}


class Steps:
    """Executes the steps of one scenario. A subclass opens the writers of its client."""

    def __init__(self, target: Target, directory: Path) -> None:
        self.target = target
        self.directory = directory
        self.metadata = target.metadata
        self.channel = target.channel()
        self._runs = run_service_pb2_grpc.RunServiceStub(self.channel)
        self._metrics = metric_service_pb2_grpc.MetricServiceStub(self.channel)
        self.writers: dict[str, Writer] = {}

    def open_writer(self, step: Mapping[str, Any]) -> Writer:
        """Open a writer of the client that is tested."""
        raise NotImplementedError

    def run(self, steps: list[dict[str, Any]]) -> dict[str, Any]:
        """Execute them all; return the result."""
        outcomes = []
        for index, step in enumerate(steps):
            started = time.monotonic()
            outcome: dict[str, Any] = {}
            try:
                if step["do"] == "fault":
                    print(json.dumps({"fault": index}), flush=True)
                    sys.stdin.readline()
                else:
                    action: Callable[[Mapping[str, Any]], dict[str, Any] | None]
                    action = getattr(self, f"do_{step['do']}")
                    outcome = action(step) or {}
            except RunnerError as error:
                outcome = {"error": error.reason}
            except grpc.RpcError as error:
                outcome = {"error": reason_of(error)}
            outcome["elapsed_ms"] = round((time.monotonic() - started) * 1_000, 3)
            outcomes.append(outcome)
        return {
            "steps": outcomes,
            "writers": {name: writer.report() for name, writer in self.writers.items()},
        }

    def _options(self) -> dict[str, Any]:
        return {"timeout": CALL_DEADLINE_S, "metadata": self.metadata}

    def do_create_run(self, step: Mapping[str, Any]) -> dict[str, Any]:
        request = run_service_pb2.CreateRunRequest(
            run_id=step["run_id"],
            experiment=step.get("experiment", ""),
            name=step.get("name", ""),
            step_policy=_policy("STEP", step.get("step_policy")),
            late_policy=_policy("LATE", step.get("late_policy")),
        )
        return {"created": self._runs.CreateRun(request, **self._options()).created}

    def do_get_run(self, step: Mapping[str, Any]) -> dict[str, Any]:
        request = run_service_pb2.GetRunRequest(run_id=step["run_id"])
        run = self._runs.GetRun(request, **self._options()).run
        attempts = [
            {
                "attempt": attempt.attempt,
                "resume_step": attempt.resume_step if attempt.HasField("resume_step") else None,
            }
            for attempt in run.attempts
        ]
        state = run_service_pb2.RunState.Name(run.state).removeprefix("RUN_STATE_")
        return {"state": state, "attempts": attempts}

    def do_finish_run(self, step: Mapping[str, Any]) -> dict[str, Any]:
        state = step.get("state")
        request = run_service_pb2.FinishRunRequest(
            run_id=step["run_id"], attempt=step.get("attempt", 0)
        )
        if state:
            request.state = run_service_pb2.RunState.Value(f"RUN_STATE_{state}")
        return {"applied": self._runs.FinishRun(request, **self._options()).applied}

    def do_heartbeat_run(self, step: Mapping[str, Any]) -> None:
        request = run_service_pb2.HeartbeatRunRequest(run_id=step["run_id"])
        self._runs.HeartbeatRun(request, **self._options())

    def do_open_writer(self, step: Mapping[str, Any]) -> None:
        self.writers[step["writer"]] = self.open_writer(step)

    def do_log(self, step: Mapping[str, Any]) -> dict[str, Any]:
        writer = self.writers[step["writer"]]
        logged = refused = 0
        first_error = None
        for position, values in records(step):
            try:
                writer.log(position, values)
                logged += 1
            except RunnerError as error:
                refused += 1
                first_error = first_error or error.reason
        return {"logged": logged, "refused": refused, "error": first_error}

    def do_flush(self, step: Mapping[str, Any]) -> None:
        self.writers[step["writer"]].flush(step.get("deadline_ms", 30_000) / 1_000)

    def do_finish(self, step: Mapping[str, Any]) -> None:
        self.writers[step["writer"]].finish(step.get("deadline_ms", 30_000) / 1_000)

    def do_close(self, step: Mapping[str, Any]) -> None:
        self.writers[step["writer"]].close()

    def do_read(self, step: Mapping[str, Any]) -> dict[str, Any]:
        request = metric_service_pb2.ReadMetricsRequest(
            run_id=step["run_id"],
            keys=step.get("keys", []),
            ranks=step.get("ranks", []),
            rank_aggregation=_aggregation(step.get("rank_aggregation")),
            first_step=step.get("first_step"),
            last_step=step.get("last_step"),
            step_policy=_policy("STEP", step.get("step_policy")),
            max_points=step.get("max_points", 0),
            include_hidden=step.get("include_hidden", False),
        )
        series: list[dict[str, Any]] = []
        for response in self._metrics.ReadMetrics(request, **self._options()):
            columns = response.columns
            if not series or (series[-1]["key"], series[-1]["rank"]) != (columns.key, columns.rank):
                series.append({"key": columns.key, "rank": columns.rank, "steps": [], "values": []})
            series[-1]["steps"] += columns.step
            series[-1]["values"] += map(spelt, columns.value)
        return {"series": series}

    def do_list_series(self, step: Mapping[str, Any]) -> dict[str, Any]:
        request = metric_service_pb2.ListSeriesRequest(
            run_id=step["run_id"],
            key_prefix=step.get("key_prefix", ""),
            page_size=step.get("page_size", 0),
        )
        series = []
        while True:
            page = self._metrics.ListSeries(request, **self._options())
            series += [
                {
                    "key": one.key,
                    "rank": one.rank,
                    "point_count": one.point_count,
                    "last_step": one.last_step,
                    "last_value": spelt(one.last_value),
                    "min_value": spelt(one.min_value),
                    "max_value": spelt(one.max_value),
                }
                for one in page.series
            ]
            if not page.next_page_token:
                return {"series": series}
            request.page_token = page.next_page_token


def _policy(kind: str, name: str | None) -> Any:
    if name is None:
        return None
    enum = run_service_pb2.StepPolicy if kind == "STEP" else run_service_pb2.LatePolicy
    return enum.Value(f"{kind}_POLICY_{name}")


def _aggregation(name: str | None) -> Any:
    if name is None:
        return None
    return metric_service_pb2.RankAggregation.Value(f"RANK_AGGREGATION_{name}")


def encode(path: Path) -> None:
    """Print the bytes of each message of the file, in hex."""
    for vector in json.loads(path.read_text(encoding="utf-8")):
        request = ParseDict(vector["message"], metric_service_pb2.WriteMetricsRequest())
        print(request.SerializeToString().hex())


def main(make: Callable[[Target, Path], Steps]) -> None:
    """Be a runner."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--address", default="")
    parser.add_argument("--scenario", type=Path)
    parser.add_argument("--encode", type=Path)
    parser.add_argument("--token", default="")
    parser.add_argument("--tls-ca")
    parser.add_argument("--directory", type=Path, default=Path())
    arguments = parser.parse_args()
    if arguments.encode:
        encode(arguments.encode)
        return
    target = Target(address=arguments.address, token=arguments.token, tls_ca=arguments.tls_ca)
    steps = make(target, arguments.directory)
    document = json.loads(arguments.scenario.read_text(encoding="utf-8"))
    print(json.dumps({"result": steps.run(document["steps"])}), flush=True)
