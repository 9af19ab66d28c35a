"""Forked workers, as a DataLoader makes them: those that log are writers of their own."""

import os
import subprocess
import sys
from pathlib import Path

import headrace
import pytest
from headrace.spool_files import spools
from headrace.status import FINISHED
from headrace.v1.run_service_pb2 import RUN_STATE_RUNNING

from tests.client.database import stored_when
from tests.client.fork_trainer import CALLS_EACH, WORKERS_THAT_LOG
from tests.client.reading import read_spool
from tests.support.gateway_process import GatewayProcess
from tests.support.waiting import eventually

ROUNDS = 50
ONLINE_ROUNDS = 10
"""Each logging worker starts a sender: 0.3 s of CPU, all at once. --long delivers all rounds."""


def trainer(run_id: str, rounds: int, spool_root: Path, **variables: str) -> tuple[int, bool]:
    """Runs the trainer; calls its thread made, and whether its own part was delivered."""
    finished = subprocess.run(
        [sys.executable, "-m", "tests.client.fork_trainer", run_id, str(rounds)],
        env={**os.environ, "HEADRACE_SPOOL_DIR": str(spool_root), **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    logged, done = finished.stdout.split()
    return int(logged), done == "True"


def workers_points(rounds: int) -> dict[str, list[int]]:
    """Key → steps that the workers log."""
    return {
        f"worker/{number}/{worker}": list(range(CALLS_EACH))
        for number in range(rounds)
        for worker in range(WORKERS_THAT_LOG)
    }


def test_fifty_rounds_of_forked_workers_lose_and_mix_nothing(tmp_path: Path) -> None:
    logged, _ = trainer(os.urandom(16).hex(), ROUNDS, tmp_path, HEADRACE_MODE="offline")
    found: dict[str, list[int]] = {}
    directories = spools(tmp_path)
    for directory in directories:
        keys = set()
        for point in read_spool(directory):
            found.setdefault(point.key, []).append(point.step)
            keys.add(point.key.partition("/")[0])
        assert keys in ({"thread", "parent"}, {"worker"})
    # One spool for each process that logged; the others made none.
    assert len(directories) == 1 + ROUNDS * WORKERS_THAT_LOG
    assert found == {
        "thread": list(range(logged)),
        "parent": list(range(ROUNDS)),
        **workers_points(ROUNDS),
    }


def test_what_forked_workers_log_arrives_once_by_senders_of_their_own(
    gateway: GatewayProcess, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    rounds = ROUNDS if pytestconfig.getoption("--long") else ONLINE_ROUNDS
    run_id = os.urandom(16).hex()
    root = tmp_path / "spool"
    logged, done = trainer(run_id, rounds, root, HEADRACE_ADDRESS=gateway.address)
    assert done
    writers = 1 + rounds * WORKERS_THAT_LOG
    found = stored_when(
        gateway.dsn, run_id, lambda now: now.finished_writers == writers, deadline_s=90
    )
    assert found.writers == writers
    assert found.state == FINISHED  # a worker that ends without a word fails nothing
    assert [step for step, _ in found.of("thread")] == list(range(logged))
    for key, steps in workers_points(rounds).items():
        assert [step for step, _ in found.of(key)] == steps
    eventually(lambda: not spools(root))


def test_a_worker_of_any_rank_that_ends_without_a_word_fails_nothing(
    gateway: GatewayProcess, tmp_path: Path
) -> None:
    script = (
        "import os, sys, headrace\n"
        "run = headrace.init(sys.argv[1], rank=1, world_size=2, quiet=True)\n"
        "run.log({'parent': 1}, 0)\n"
        "if os.fork() == 0:\n"
        "    run.log({'child': 1}, 0)\n"
        "    os._exit(0)\n"
        "os.wait()\n"
        "run.finish(60)\n"
    )
    run_id, root = os.urandom(16).hex(), tmp_path / "spool"
    subprocess.run(
        [sys.executable, "-c", script, run_id],
        env={
            **os.environ,
            "HEADRACE_ADDRESS": gateway.address,
            "HEADRACE_SPOOL_DIR": str(root),
        },
        check=True,
    )
    eventually(lambda: not spools(root))  # what a sender has to say, it has said
    found = stored_when(gateway.dsn, run_id, lambda now: now.finished_writers == 2)
    assert {key for key, *_ in found.points} == {"parent", "child"}
    assert found.state == RUN_STATE_RUNNING


def test_a_forked_child_may_leave_through_the_interpreters_end(tmp_path: Path) -> None:
    run = headrace.init(mode="offline", spool_dir=tmp_path, quiet=True)
    run.log({"parent": 1}, 0)
    script = (
        "import os, sys, headrace\n"
        "run = headrace.init(mode='offline', spool_dir=sys.argv[1], quiet=True)\n"
        "run.log({'parent': 1}, 0)\n"
        "if os.fork() == 0:\n"
        "    run.log({'child': 1}, 0)\n"
        "    sys.exit(0)\n"
        "_, status = os.wait()\n"
        "run.log({'parent': 2}, 1)\n"
        "sys.exit(status)\n"
    )
    root = tmp_path / "forked"
    subprocess.run([sys.executable, "-c", script, str(root)], check=True)
    points = [sorted((p.key, p.step) for p in read_spool(spool)) for spool in spools(root)]
    assert sorted(points) == [[("child", 0)], [("parent", 0), ("parent", 1)]]
    run.finish()
