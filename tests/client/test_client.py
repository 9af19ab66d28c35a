"""`headrace.Client` finds, compares, changes, exports and imports runs of a real gateway."""

import math
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import headrace
import numpy as np
import pytest
from headrace.client import Client
from headrace.importing import IMPORTED_FACT
from headrace.v1 import run_service_pb2 as pb

from tests.support.gateway_process import GatewayProcess


@pytest.fixture
def client(shared_gateway: GatewayProcess) -> Any:
    with Client(shared_gateway.address) as made:
        yield made


@pytest.fixture
def experiment() -> str:
    return f"team/client/{uuid.uuid4().hex[:8]}"


@pytest.fixture
def train(
    shared_gateway: GatewayProcess, tmp_path: Path, experiment: str
) -> Callable[..., headrace.Run]:
    """Trains for five steps and finishes; the loss begins at `loss` and halves."""

    def run_training(*, loss: float = 1.0, finish: bool = True, **options: Any) -> headrace.Run:
        defaults: dict[str, Any] = {
            "experiment": experiment,
            "address": shared_gateway.address,
            "spool_dir": tmp_path / "spool",
            "quiet": True,
        }
        run = headrace.init(**(defaults | options))
        for step in range(5):
            run.log({"loss": loss / 2**step, "accuracy": step / 10}, step)
        if finish:
            assert run.finish().done
        return run

    return run_training


def test_experiments_are_created_found_changed_deleted_and_restored(
    client: Client, experiment: str
) -> None:
    made = client.create_experiment(experiment, description="first", tags={"owner": "ada"})
    assert client.create_experiment(experiment, exist_ok=True) == made
    with pytest.raises(headrace.GatewayError, match="EXPERIMENT_EXISTS"):
        client.create_experiment(experiment)
    assert client.experiment(experiment) == client.experiment(made.experiment_id) == made
    renamed = client.update_experiment(experiment, name=experiment + "-b", description="second")
    assert (renamed.name, renamed.description) == (experiment + "-b", "second")
    tagged = client.set_experiment_tags(made.experiment_id, {"kind": "x"}, deleted=["owner"])
    assert tagged.tags == {"kind": "x"}
    condition = f"name = '{experiment}-b'"
    assert client.delete_experiment(made.experiment_id).deleted_at
    assert list(client.search_experiments(condition)) == []
    assert [e.name for e in client.search_experiments(condition, visibility="deleted")]
    assert client.restore_experiment(made.experiment_id).deleted_at is None
    with pytest.raises(headrace.GatewayError, match="EXPERIMENT_NOT_FOUND"):
        client.experiment("none/such/" + uuid.uuid4().hex)


def test_runs_are_searched_in_order_over_all_pages(
    client: Client, train: Callable[..., headrace.Run], experiment: str
) -> None:
    runs = [train(loss=float(loss), config={"loss": loss}) for loss in (3, 1, 2)]
    found = client.search_runs(experiments=[experiment], order_by=["metrics.loss ASC"])
    assert [run.run_id for run in found] == [runs[1].id, runs[2].id, runs[0].id]
    best = next(client.search_runs("metrics.loss.max < 1.5", experiments=experiment))
    assert (best.params, best.metrics["loss"].last) == ({"loss": "1"}, 1 / 16)
    made = [uuid.uuid4().hex for _ in range(250)]
    for run_id in made:
        client._call(
            client._run_service.CreateRun,
            pb.CreateRunRequest(run_id=run_id, experiment=experiment),
        )
    everything = [run.run_id for run in client.search_runs(experiments=[experiment])]
    assert sorted(everything) == sorted(made + [run.id for run in runs])
    limited = client.search_runs(experiments=[experiment], limit=203, include_data=False)
    assert [run.run_id for run in limited] == everything[:203]
    with pytest.raises(headrace.GatewayError, match="FILTER_INVALID"):
        next(client.search_runs("metrics.loss <"))


def test_a_run_is_found_by_what_a_user_says(
    client: Client, train: Callable[..., headrace.Run]
) -> None:
    name = f"O'Brien {uuid.uuid4().hex[:6]}"
    run = train(name=name)
    for text in (run.id, str(uuid.UUID(run.id)).upper(), run.id[:14], name):
        assert client.find_run(text).run_id == run.id
    with pytest.raises(LookupError, match="headrace runs ls"):
        client.find_run("no such run")
    other = train(name=name)
    with pytest.raises(LookupError, match=other.id):
        client.find_run(name)


def test_runs_stand_side_by_side(client: Client, train: Callable[..., headrace.Run]) -> None:
    first = train(loss=1.0, config={"lr": 0.1, "seed": 7}, name="a")
    second = train(loss=8.0, config={"lr": 0.2, "seed": 7}, name="b", finish=False)
    second.summary["best"] = 0.5
    second.finish()
    table = client.compare([first.id, second.id], metrics=["loss"], differing=True)
    assert table.columns[:5] == ("run_id", "name", "experiment", "state", "params.lr")
    assert "params.seed" not in table.columns
    assert "metrics.accuracy.last" not in table.columns
    assert [row["metrics.loss.last"] for row in table.rows] == [1 / 16, 0.5]
    assert [row["metrics.loss.max"] for row in table.rows] == [1.0, 8.0]
    frame = client.compare([first.id, second.id]).to_pandas()
    assert frame.loc[second.id, "summary.best"] == 0.5
    assert frame["params.seed"].tolist() == ["7", "7"]
    assert math.isnan(frame.loc[first.id, "summary.best"])


def test_runs_are_changed_deleted_and_restored(
    client: Client, train: Callable[..., headrace.Run], experiment: str
) -> None:
    run = train(tags={"a": "1"})
    assert client.update_run(run.id, name="renamed", notes="seen").name == "renamed"
    assert client.update_run(run.id, notes="").name == "renamed"
    client.set_tags(run.id, {"b": 2, "headrace.protected": ""})
    client.delete_tags(run.id, "a", "none")
    assert client.run(run.id).tags == {"b": "2", "headrace.protected": ""}
    with pytest.raises(headrace.GatewayError, match="RUN_PROTECTED"):
        client.delete_run(run.id)
    client.delete_tags(run.id, "headrace.protected")
    assert client.delete_run(run.id).deleted_at
    assert list(client.search_runs(experiments=[experiment])) == []
    assert client.restore_run(run.id).deleted_at is None
    assert [found.run_id for found in client.search_runs(experiments=[experiment])] == [run.id]


def _everything(client: Client, run_id: str) -> tuple[Any, ...]:
    """All that is known of a run but its identity, times of the gateway's own, and experiment."""
    message = client._run_message(run_id)
    for name in ("run_id", "experiment", "experiment_id", "create_time", "heartbeat_time"):
        message.ClearField(name)
    message.facts.pop(IMPORTED_FACT, None)
    for attempt in message.attempts:
        attempt.ClearField("start_time")
    reads = []
    for options in ({}, {"include_hidden": True, "policy": "all"}, {"policy": "first"}):
        columns = client.read(run_id, **options)
        reads.append(
            [
                (s.key, s.rank, s.attempt, s.step.tolist(), s.time.tolist(), repr(s.value.tolist()))
                for s in columns
            ]
        )
    return message, reads


def test_a_run_comes_back_from_parquet_as_it_was(
    client: Client, train: Callable[..., headrace.Run], tmp_path: Path
) -> None:
    import pyarrow.parquet as pq

    first = train(
        config={"lr": 0.1}, tags={"team": "search"}, notes="notes", parent=uuid.uuid4().hex,
        step_policy="all", finish=False, run_id=uuid.uuid4().hex, world_size=2, rank=0,
    )  # fmt: skip
    first.summary.update({"best": 0.5, "verdict": "good", "nan": math.nan})
    first.log_dataset("clicks", digest="ab", context="training", schema={"a": 1})
    first.log({"loss": math.nan, "epoch/x": math.inf}, 4)
    first.log({"loss": 1.0}, 2)
    point = first.resume_point(3)
    first.finish(state="failed")
    train(run_id=first.id, rank=1, world_size=2, step_policy="all", loss=5.0)
    second = train(
        resume=point, resume_exempt_keys=["epoch/x"], finish=False, loss=9.0, world_size=2, rank=0
    )
    second.finish(state="killed")
    file = client.export_run(first.id, tmp_path / "run.parquet")
    assert client.export_experiment(client.run(first.id).experiment, tmp_path / "all")
    table = pq.read_table(file)
    assert table.column_names == ["key", "rank", "attempt", "step", "time", "value"]
    assert sum(len(s) for s in client.read(first.id, policy="all", include_hidden=True)) == len(
        table
    )
    copy = client.import_run(file, new_id=True, experiment="imported")
    assert (copy.experiment, copy.state) == ("imported", "KILLED")
    assert copy.run_id != first.id
    assert _everything(client, copy.run_id) == _everything(client, first.id)
    before = _everything(client, first.id)
    with pytest.raises(headrace.GatewayError, match="RUN_EXISTS"):
        client.import_run(file)  # its points would be there twice
    assert _everything(client, first.id) == before
    exported = client.export_run(copy.run_id, tmp_path / "copy.parquet")
    with pytest.raises(headrace.GatewayError, match="in the experiment 'imported'"):
        client.import_run(exported, experiment="another")
    assert list(tmp_path.glob(".*.part")) == []


def test_an_interrupted_import_is_repeated_and_stores_every_point_once(
    client: Client, train: Callable[..., headrace.Run], tmp_path: Path, monkeypatch: Any
) -> None:
    run = train(finish=False)
    keys = [f"key {number}" for number in range(800)]
    for step in range(20):
        run.log(dict.fromkeys(keys, float(step)), 100 + step)
    assert run.finish().done
    file = client.export_run(run.id, tmp_path / "run.parquet")
    with monkeypatch.context() as patched:
        patched.setattr("headrace.identifiers.new_identifier", lambda: "cd" * 16)
        patched.setattr("headrace.importing.new_identifier", lambda: "cd" * 16)
        client.import_run(file, new_id=True)
        client.import_run(file, new_id=True)
    assert _everything(client, "cd" * 16) == _everything(client, run.id)
    assert client.series("cd" * 16, prefix="key 7")[0].point_count == 20


def test_a_file_that_is_no_export_is_refused_by_name(client: Client, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"a": np.arange(3)}), tmp_path / "other.parquet")
    with pytest.raises(headrace.HeadraceError, match=r"other\.parquet has format None"):
        client.import_run(tmp_path / "other.parquet")
