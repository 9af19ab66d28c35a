"""What a run says of itself goes the way of its points: at once, in order, once, whatever dies."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import headrace
import pytest
from headrace.record import MetadataRecords
from headrace.spool_files import WriterIdentity
from headrace.spool_reader import SpoolReader
from headrace.v1 import run_service_pb2 as pb
from headrace.v1.metric_service_pb2 import MetadataBatch
from headrace.v1.run_service_pb2_grpc import RunServiceStub

from tests.client.database import stored_when
from tests.client.reading import only_spool, read_spool
from tests.client.test_delivery import sync
from tests.support.gateway_process import GatewayProcess

Start = Callable[..., headrace.Run]


@pytest.fixture
def start(gateway: GatewayProcess, tmp_path: Path) -> Iterator[Start]:
    """Starts a run against the gateway."""
    runs = []

    def start_run(**options: Any) -> headrace.Run:
        defaults: dict[str, Any] = {
            "address": gateway.address,
            "spool_dir": tmp_path / "spool",
            "quiet": True,
        }
        runs.append(headrace.init(**(defaults | options)))
        return runs[-1]

    yield start_run
    for run in runs:
        run.finish(timeout=10)


@pytest.fixture
def offline(tmp_path: Path) -> Iterator[Start]:
    """Starts an offline run."""
    runs = []

    def start_run(**options: Any) -> headrace.Run:
        runs.append(
            headrace.init(mode="offline", spool_dir=tmp_path / "spool", quiet=True, **options)
        )
        return runs[-1]

    yield start_run
    for run in runs:
        run.finish()


def stored_run(gateway: GatewayProcess, run_id: str) -> pb.Run:
    """The run as the gateway has it."""
    with grpc.insecure_channel(gateway.address) as channel:
        return RunServiceStub(channel).GetRun(pb.GetRunRequest(run_id=run_id)).run


def pairs(entries: Any) -> dict[str, str]:
    return {entry.key: entry.value for entry in entries}


def said(directory: Path) -> list[pb.MetadataEntry]:
    """The entries in a spool, in order."""
    reader = SpoolReader(directory, WriterIdentity.read(directory).incarnation)
    reader.seek(1, ended=True)
    found: list[pb.MetadataEntry] = []
    while (records := reader.read(8_192, ended=True)) is not None:
        if isinstance(records, MetadataRecords):
            found += MetadataBatch.FromString(records.entries).entries
    reader.close()
    assert reader.damages == []
    return found


def test_everything_that_is_said_arrives(start: Start, gateway: GatewayProcess) -> None:
    parent = start(experiment="team/search/ranker")
    run = start(
        experiment="team/search/ranker",
        name="baseline",
        config={"lr": 0.1, "model": {"layers": 4}},
        tags={"team": "search"},
        notes="first try",
        group="sweep-1",
        parent=parent,
    )
    run.config["batch_size"] = 64
    run.log_params({"lr": 0.1})  # the same value again is fine
    run.set_tags({"stage": "warm-up", "temporary": 1})
    run.log({"loss": 1.0})
    run.summary["best/ndcg"] = 0.41
    run.summary.update({"verdict": "ship it", "best": {"epoch": 3}})
    run.delete_tags("temporary")
    run.log_dataset(
        "clicks", digest="ab12", context="training", source="s3://bucket/clicks",
        source_type="s3", schema={"user": "int64"}, profile={"rows": 10},
    )  # fmt: skip
    status = run.finish()
    assert (status.done, status.rejected_entries, status.accepted_points) == (True, 0, 1)
    found = stored_run(gateway, run.id)
    assert pairs(found.params) == {"lr": "0.1", "model/layers": "4", "batch_size": "64"}
    assert pairs(found.tags) == {
        "team": "search", "stage": "warm-up", "headrace.group": "sweep-1",
    }  # fmt: skip
    assert {s.key: s.text or s.number for s in found.summary} == {
        "best/ndcg": 0.41, "verdict": "ship it", "best/epoch": 3.0,
    }  # fmt: skip
    (dataset,) = found.datasets
    assert (dataset.name, dataset.digest, dataset.schema) == ("clicks", "ab12", '{"user": "int64"}')
    assert (found.notes, found.parent_run_id, found.name) == ("first try", parent.id, "baseline")
    assert run.config["model/layers"] == 4


def test_facts_are_found_without_asking(
    start: Start, gateway: GatewayProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What runs the tests may have no file of its own.
    monkeypatch.setattr(sys.modules["__main__"], "__file__", __file__, raising=False)
    run = start()
    run.finish()
    found = stored_run(gateway, run.id)
    assert found.user_name
    assert found.host
    assert found.entry_point
    assert len(found.git_commit) in {0, 40}
    assert found.facts["python.version"] == ".".join(map(str, sys.version_info[:3]))
    assert found.facts["package.pytest"]
    started_s = found.start_time.seconds
    assert abs(started_s - time.time()) < 120


def test_points_and_metadata_keep_their_order(offline: Start) -> None:
    run = offline()
    for step in range(3):
        run.log({"loss": step}, step)
        run.set_tags({"step": step})
    run.log({"loss": 3.0}, 3)
    directory = Path(str(run.spool))
    assert [entry.tag.value for entry in said(directory)] == ["0", "1", "2"]
    assert [point.step for point in read_spool(directory)] == [0, 1, 2, 3]
    run.set_tags({f"tag {number}": "x" * 8_000 for number in range(1_500)})
    assert len(said(directory)) == 3 + 1_500


_KILLED = """
import os, signal, headrace
run = headrace.init(experiment="killed", config={"lr": 0.1})
run.log({"loss": 1.0})
run.summary["best"] = 0.5
run.set_tags({"last": "word"})
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("gateway_is_down", [False, True], ids=["up", "down"])
def test_what_was_said_survives_the_death_of_the_trainer(
    gateway: GatewayProcess, tmp_path: Path, gateway_is_down: bool
) -> None:
    if gateway_is_down:
        gateway.kill()
    run_id = os.urandom(16).hex()
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED],
        env={
            "HEADRACE_ADDRESS": gateway.address,
            "HEADRACE_SPOOL_DIR": str(tmp_path / "spool"),
            "HEADRACE_RUN_ID": run_id,
        },
        check=False,
        timeout=60,
    )
    assert killed.returncode == -signal.SIGKILL
    if gateway_is_down:
        gateway.start()
    stored_when(gateway.dsn, run_id, lambda now: now.state == pb.RUN_STATE_FAILED)
    found = stored_run(gateway, run_id)
    assert pairs(found.params) == {"lr": "0.1"}
    assert pairs(found.tags) == {"last": "word"}
    assert [s.number for s in found.summary] == [0.5]


def test_an_outage_neither_loses_nor_repeats_what_was_said(
    start: Start, gateway: GatewayProcess
) -> None:
    run = start(config={"a": 1})
    for step in range(200):
        run.log({"loss": step}, step)
        run.set_tags({"step": step})
        run.summary[f"value {step}"] = step
        if step == 100:
            gateway.restart()
    status = run.finish(timeout=60)
    assert (status.done, status.rejected_entries) == (True, 0)
    found = stored_run(gateway, run.id)
    assert pairs(found.tags) == {"step": "199"}
    assert {s.key: s.number for s in found.summary} == {f"value {n}": n for n in range(200)}


def test_offline_metadata_is_sent_by_sync(
    offline: Start, gateway: GatewayProcess, tmp_path: Path
) -> None:
    run = offline(experiment="plane", config={"lr": 0.1}, tags=["draft"], notes="from above")
    run.finish()
    assert sync(gateway, tmp_path / "spool")["outcome"] == "delivered"
    found = stored_run(gateway, run.id)
    assert (found.experiment, found.notes, pairs(found.tags)) == (
        "plane",
        "from above",
        {"draft": ""},
    )
    assert pairs(found.params) == {"lr": "0.1"}
    assert found.facts["python.version"]


def test_a_changed_param_is_warned_of_and_rejected_for_good(
    start: Start, gateway: GatewayProcess, caplog: pytest.LogCaptureFixture
) -> None:
    first = start(config={"lr": 0.1})
    first.finish()
    with caplog.at_level(logging.WARNING, logger="headrace"):
        run = start(run_id=first.id, attempt=2, config={"lr": 0.2, "depth": 3})
        run.config["depth"] = 4
        assert "param 'depth' is 3 already, not 4" in caplog.text
        status = run.finish()
    assert status.rejected_entries == 2
    assert {sample["reason"] for sample in status.rejections} == {"PARAM_CHANGED"}
    assert "param 'lr' is '0.1' already, not '0.2'" in str(status.rejections)
    assert "entries rejected (param" in status.summary()
    assert "PARAM_CHANGED" in caplog.text
    assert pairs(stored_run(gateway, run.id).params) == {"lr": "0.1", "depth": "3"}


def test_only_strict_raises(offline: Start, caplog: pytest.LogCaptureFixture) -> None:
    run = offline()
    run.set_tags({"good": "x", "": "no key", "long": "x" * 8_001})
    run.summary["bad"] = object()
    run.log_dataset("d", digest="x" * 65)
    run.log_params([1, 2])  # type: ignore[arg-type]
    assert run.status().refused_entries == 5
    assert [entry.tag.key for entry in said(only_spool(Path(str(run.spool)).parent))] == ["good"]
    (warning,) = caplog.records
    assert "empty" in warning.getMessage()
    run.finish()
    strict = offline(strict=True, config={"lr": 0.1})
    with pytest.raises(headrace.InvalidMetadataError, match="empty"):
        strict.set_tags({"": "x"})
    with pytest.raises(headrace.InvalidMetadataError, match="already"):
        strict.log_params({"lr": 0.2})
    with pytest.raises(headrace.InvalidMetadataError, match="NoneType"):
        strict.summary["x"] = None
    strict.log_params({"lr": 0.1})


def test_a_resume_point_continues_the_run_as_its_next_attempt(
    start: Start, gateway: GatewayProcess
) -> None:
    first = start(experiment="resumed")
    for step in range(10):
        first.log({"loss": step}, step)
    point = first.resume_point(step=5)
    first.finish(state="failed")
    second = start(resume=point)
    assert (second.id, second.attempt) == (first.id, 2)
    second.log({"loss": 50.0})
    second.finish()
    with headrace.Client(gateway.address) as client:
        loss = client.read(first.id, ["loss"])["loss"]
    assert loss.step.tolist() == [0, 1, 2, 3, 4, 5]
    with pytest.raises(headrace.ConfigurationError, match="resume_point"):
        headrace.init(resume={"run_id": "x"})


def test_metadata_of_a_disabled_run_costs_and_records_nothing(tmp_path: Path) -> None:
    run = headrace.init(mode="disabled", spool_dir=tmp_path, config={"lr": 1}, tags=["x"])
    run.config["lr"] = 2
    run.summary["best"] = 1
    assert run.status().refused_entries == 0
    assert list(tmp_path.iterdir()) == []


def test_starting_a_run_takes_no_noticeable_time(tmp_path: Path) -> None:
    from headrace.facts import find_facts, find_origin

    durations = []
    for _ in range(20):
        begun = time.perf_counter()
        find_origin({})
        find_facts({})
        durations.append(time.perf_counter() - begun)
    assert sorted(durations)[10] < 0.2
