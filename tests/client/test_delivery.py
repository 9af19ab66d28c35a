"""From `log` to PostgreSQL through a real sender and a real gateway, whatever dies in between."""

import json
import math
import os
import re
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
from headrace import spool_files
from headrace.spool_files import Note, WriterIdentity, spools
from headrace.status import FAILED, FINISHED
from headrace.v1.experiment_service_pb2 import ArchiveWorkspaceRequest, CreateWorkspaceRequest
from headrace.v1.experiment_service_pb2_grpc import WorkspaceServiceStub

from tests.client.database import stored, stored_when
from tests.client.reading import only_spool
from tests.support.gateway_process import GatewayProcess
from tests.support.waiting import eventually

Start = Callable[..., headrace.Run]


@pytest.fixture
def spool_root(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def start(gateway: GatewayProcess, spool_root: Path) -> Iterator[Start]:
    """Starts a run against the gateway."""
    runs = []

    def start_run(**options: Any) -> headrace.Run:
        defaults: dict[str, Any] = {
            "address": gateway.address,
            "spool_dir": spool_root,
            "quiet": True,
        }
        runs.append(headrace.init(**(defaults | options)))
        return runs[-1]

    yield start_run
    for run in runs:
        run.finish(timeout=10)


def sender_pid(run: headrace.Run) -> int:
    assert run._recorder._sender is not None
    assert run._recorder._sender.pid is not None
    return run._recorder._sender.pid


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_every_point_arrives_once_and_the_spool_is_gone(
    start: Start, gateway: GatewayProcess, spool_root: Path
) -> None:
    run = start(experiment="delivery", step_policy="all")
    for step in range(500):
        run.log({"a": step, "b": {"c": math.inf}}, step)
    status = run.finish()
    assert (status.done, status.accepted_points, status.pending_records) == (True, 1_000, 0)
    found = stored(gateway.dsn, run.id)
    assert found.state == FINISHED
    assert found.of("a") == [(step, float(step)) for step in range(500)]
    assert found.of("b/c") == [(step, math.inf) for step in range(500)]
    assert list(spool_root.iterdir()) == []


def test_rejections_come_back_with_their_reason(start: Start) -> None:
    run = start(late_policy="reject")
    for step in (5, 6, 5):
        run.log({"a": 1.0}, step)
        eventually(lambda: run.status().pending_records == 0)
    status = run.finish()
    assert (status.accepted_points, status.rejected_points) == (2, 1)
    assert status.rejections[0]["reason"] == "STEP_LATE"
    assert status.rejections[0]["step"] == 5
    assert "STEP_LATE" in status.summary()


def test_logging_and_finishing_never_wait_for_a_gateway_that_is_down(
    start: Start, gateway: GatewayProcess, spool_root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    gateway.kill()
    begun = time.monotonic()
    run = start(quiet=False)
    for step in range(1_000):
        run.log({"a": step}, step)
    status = run.finish(timeout=0.2)
    assert (
        time.monotonic() - begun < 20
    )  # it is down until further down: waiting for it would take for ever
    assert (status.done, status.pending_records) == (False, 1_000)
    (spool,) = spools(spool_root)
    assert f"headrace sync {spool}" in capfd.readouterr().err
    gateway.start()
    found = stored_when(gateway.dsn, run.id, lambda now: now.state == FINISHED)
    assert found.of("a") == [(step, float(step)) for step in range(1_000)]
    eventually(lambda: not spools(spool_root))


def test_outages_and_restarts_of_the_gateway_lose_and_repeat_nothing(
    start: Start, gateway: GatewayProcess
) -> None:
    run = start()
    step = 0
    for restart in (False, True, False):
        for _ in range(2_000):
            run.log({"a": step, "b": -step}, step)
            step += 1
        eventually(lambda: run.status().committed_records > 0)
        gateway.restart(graceful=restart)
    status = run.finish(timeout=60)
    assert status.done
    found = stored(gateway.dsn, run.id)
    assert found.of("a") == [(number, float(number)) for number in range(step)]
    assert found.of("b") == [(number, float(-number)) for number in range(step)]


def test_a_killed_sender_is_replaced_and_nothing_is_sent_twice(
    start: Start, gateway: GatewayProcess
) -> None:
    run = start()
    for step in range(3_000):
        run.log({"a": step}, step)
    eventually(lambda: run.status().committed_records > 0)
    first = sender_pid(run)
    os.kill(first, signal.SIGKILL)
    for step in range(3_000, 4_000):
        run.log({"a": step}, step)
    status = run.finish(timeout=60)
    assert status.done
    assert stored(gateway.dsn, run.id).of("a") == [(n, float(n)) for n in range(4_000)]


def test_senders_that_die_one_after_another_are_warned_of_once(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = start(address="https://127.0.0.1:1", tls_ca=str(tmp_path / "missing.pem"))

    def warned() -> bool:
        run.log({"a": 1})
        return any("times in a row" in record.getMessage() for record in caplog.records)

    eventually(warned, "a warning")
    (told,) = [each for each in caplog.records if "times in a row" in each.getMessage()]
    named = re.search(r"(/\S+sender\.log) says why", told.getMessage())
    assert named is not None
    assert "missing.pem" in Path(named[1]).read_text()


TRAINER = """
import os, signal, sys, time
import headrace
run = headrace.init(sys.argv[1], quiet=True)
for step in range(int(sys.argv[2])):
    run.log({"a": step}, step)
print("logged", flush=True)
if sys.argv[3] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
elif sys.argv[3] == "interrupt":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
"""


def train(gateway: GatewayProcess, spool_root: Path, calls: int, ending: str) -> tuple[str, int]:
    """Runs a trainer to its end; its run id and exit status."""
    run_id = os.urandom(16).hex()
    finished = subprocess.run(
        [sys.executable, "-c", TRAINER, run_id, str(calls), ending],
        env={
            **os.environ,
            "HEADRACE_ADDRESS": gateway.address,
            "HEADRACE_SPOOL_DIR": str(spool_root),
        },
        stderr=subprocess.DEVNULL,
        check=False,
        process_group=0,
    )
    return run_id, finished.returncode


@pytest.mark.parametrize("calls", [1, 5_000])
def test_a_trainer_killed_right_after_log_loses_nothing_and_its_run_has_failed(
    gateway: GatewayProcess, spool_root: Path, calls: int
) -> None:
    run_id, status = train(gateway, spool_root, calls, "kill")
    assert status == -signal.SIGKILL
    found = stored_when(gateway.dsn, run_id, lambda now: now.state == FAILED)
    assert found.of("a") == [(step, float(step)) for step in range(calls)]
    eventually(lambda: not spools(spool_root))


def test_an_exception_or_ctrl_c_fails_the_run_and_delivers_it(
    gateway: GatewayProcess, spool_root: Path
) -> None:
    run_id, status = train(gateway, spool_root, 100, "interrupt")
    assert status == -signal.SIGINT
    found = stored_when(gateway.dsn, run_id, lambda now: now.state == FAILED)
    assert len(found.points) == 100


def test_a_forgotten_finish_is_made_up_for_at_exit(
    gateway: GatewayProcess, spool_root: Path
) -> None:
    run_id, status = train(gateway, spool_root, 100, "")
    assert status == 0
    found = stored(gateway.dsn, run_id)
    assert (found.state, len(found.points)) == (FINISHED, 100)


def test_sync_delivers_a_spool_whose_trainer_and_sender_were_killed(
    start: Start, gateway: GatewayProcess, spool_root: Path
) -> None:
    gateway.kill()
    run_id, _ = train(gateway, spool_root, 500, "kill")
    spool = only_spool(spool_root)
    # The trainer's end may be faster than its sender's exec.
    (sender,) = eventually(lambda: _senders_of(spool), "a sender")
    os.kill(sender, signal.SIGKILL)
    eventually(lambda: not alive(sender))
    gateway.start()
    report = sync(gateway, spool_root)
    assert report["outcome"] == "delivered"
    assert report["committed_records"] == 500
    found = stored(gateway.dsn, run_id)
    assert (found.state, len(found.points)) == (FAILED, 500)
    assert sync(gateway, spool_root) == {}


def test_an_offline_run_is_delivered_by_sync_whole(
    start: Start, gateway: GatewayProcess, spool_root: Path
) -> None:
    run = start(mode="offline")
    for step in range(1_000):
        run.log({"a": step}, step)
    run.finish()
    assert stored(gateway.dsn, run.id).state == 0
    assert sync(gateway, spool_root)["outcome"] == "delivered"
    found = stored(gateway.dsn, run.id)
    assert (found.state, len(found.points)) == (FINISHED, 1_000)


def test_sync_of_a_living_offline_run_sends_what_is_there_and_can_be_repeated(
    start: Start, gateway: GatewayProcess, spool_root: Path
) -> None:
    run = start(mode="offline")
    for half in (0, 1):
        for step in range(100):
            run.log({"a": step}, 100 * half + step)
        report = sync(gateway, spool_root)
        assert (report["outcome"], report["committed_records"]) == ("sent", 100 * (half + 1))
    run.finish()
    assert sync(gateway, spool_root)["outcome"] == "delivered"
    assert len(stored(gateway.dsn, run.id).points) == 200


def test_sync_leaves_a_spool_to_its_living_sender(
    start: Start, gateway: GatewayProcess, spool_root: Path
) -> None:
    run = start()
    run.log({"a": 1})
    eventually(lambda: run.status().connected)
    assert sync(gateway, spool_root, status=1)["outcome"] == "sending"


def test_a_copied_spool_is_refused_and_the_first_one_undisturbed(
    start: Start, gateway: GatewayProcess, spool_root: Path
) -> None:
    run = start()
    run.log({"a": 1}, 0)
    eventually(lambda: run.status().committed_records == 1)
    original = only_spool(spool_root)
    identity = WriterIdentity.read(original)
    other_root = spool_root.parent / "other"
    thief = start(run_id=run.id, mode="offline", spool_dir=other_root)
    thief.log({"stolen": 1}, 0)
    thief.finish()
    copied = only_spool(other_root)
    content = json.loads((copied / spool_files.WRITER_FILE).read_text())
    content["writer_id"] = identity.writer_id
    (copied / spool_files.WRITER_FILE).write_text(json.dumps(content))
    report = sync(gateway, other_root, status=1)
    assert report["outcome"] == "failed"
    assert "WRITER_CLAIMED" in report["text"]
    run.log({"a": 2}, 1)
    assert run.finish().done
    assert stored(gateway.dsn, run.id).of("a") == [(0, 1.0), (1, 2.0)]


def test_what_found_no_space_is_recorded_in_the_run(
    start: Start, gateway: GatewayProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.spool.SEGMENT_BYTES", 300_000)
    run = start(mode="offline", spool_bytes_max=1_000)
    big = {f"key_{index}": 0.0 for index in range(8_000)}
    for _ in range(20):
        run.log(big)
    dropped = run.finish().dropped_points
    assert dropped > 0
    assert sync(gateway, Path(str(run._settings.spool_dir)))["outcome"] == "delivered"
    found = stored(gateway.dsn, run.id)
    assert [value for _, value in found.of("headrace/dropped_points")] == [dropped]
    assert len(found.points) == 20 * 8_000 - dropped + 1


def test_damage_in_the_spool_loses_only_its_records_and_is_reported(
    start: Start, gateway: GatewayProcess, spool_root: Path
) -> None:
    run = start(mode="offline")
    for step in range(100):
        run.log({"a": step}, step)
    run.finish()
    segment = spool_files.segment_path(only_spool(spool_root), 1)
    content = bytearray(segment.read_bytes())
    content[48 * 50 + 40] ^= 0xFF
    segment.write_bytes(content)
    report = sync(gateway, spool_root)
    assert report["outcome"] == "delivered"
    assert f"{segment.name}, offset {48 * 50}" in report["text"]
    assert [step for step, _ in stored(gateway.dsn, run.id).of("a")] == [
        step for step in range(100) if step != 50
    ]


def test_points_whose_keys_a_power_loss_took_arrive_under_a_key_that_says_so(
    start: Start, gateway: GatewayProcess, spool_root: Path
) -> None:
    run = start(mode="offline")
    run.log({"a": 1}, 0)
    keys = only_spool(spool_root) / spool_files.KEYS_FILE
    whole_entries = keys.stat().st_size
    run.log({"b": 2}, 1)
    run.finish()
    os.truncate(keys, whole_entries)
    assert sync(gateway, spool_root)["outcome"] == "delivered"
    found = stored(gateway.dsn, run.id)
    assert found.of("a") == [(0, 1.0)]
    assert found.of("headrace/unreadable_key_1") == [(1, 2.0)]


def test_attempts_and_ranks_reach_the_gateway(start: Start, gateway: GatewayProcess) -> None:
    first = start(run_id=os.urandom(16).hex(), rank=1, world_size=2)
    first.log({"a": 1}, 0)
    first.finish()
    assert stored(gateway.dsn, first.id).state != FINISHED  # the end of rank 0 is the run's
    second = start(run_id=first.id, rank=0, world_size=2, attempt=2, resume_step=0)
    second.log({"a": 2})
    second.finish()
    found = stored(gateway.dsn, first.id)
    assert found.points == [("a", 0, 2, 0, 2.0), ("a", 1, 1, 0, 1.0)]
    assert found.state == FINISHED


def test_a_late_rank_delivers_although_the_experiment_was_renamed(
    start: Start, gateway: GatewayProcess, spool_root: Path
) -> None:
    name = f"team/delivery/{os.urandom(4).hex()}"
    first = start(experiment=name, rank=0, world_size=2, run_id=os.urandom(16).hex())
    first.log({"a": 1}, 0)
    first.finish()
    with headrace.Client(gateway.address) as client:
        client.update_experiment(name, name=name + "/renamed")
    late = start(experiment=name, rank=1, world_size=2, run_id=first.id, mode="offline")
    late.log({"a": 2}, 0)
    late.finish()
    assert sync(gateway, spool_root)["outcome"] == "delivered"
    assert stored(gateway.dsn, first.id).points == [("a", 0, 1, 0, 1.0), ("a", 1, 1, 0, 2.0)]


@pytest.mark.parametrize(
    "reason", ["EXPERIMENT_DELETED", "WORKSPACE_NOT_FOUND", "WORKSPACE_ARCHIVED"]
)
def test_what_is_refused_until_somebody_acts_is_told_at_once_and_stays(
    start: Start,
    gateway: GatewayProcess,
    spool_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    reason: str,
) -> None:
    name = f"w{os.urandom(6).hex()}"
    if reason == "EXPERIMENT_DELETED":
        with headrace.Client(gateway.address) as client:
            client.create_experiment(name)
            client.delete_experiment(name)
    else:
        monkeypatch.setenv("HEADRACE_WORKSPACE", name)
    if reason == "WORKSPACE_ARCHIVED":
        with grpc.insecure_channel(gateway.address) as channel:
            workspaces = WorkspaceServiceStub(channel)
            workspaces.CreateWorkspace(CreateWorkspaceRequest(name=name))
            workspaces.ArchiveWorkspace(ArchiveWorkspaceRequest(name=name))
    run = start(experiment=name, mode="offline")
    run.log({"a": 1})
    run.finish()
    report = sync(gateway, spool_root, status=1)
    assert reason in report["text"]
    assert "the records stay" in report["text"]
    assert only_spool(spool_root).is_dir()


def test_an_idle_sender_notices_the_next_log_call_at_once(
    start: Start, gateway: GatewayProcess
) -> None:
    run = start()
    run.log({"a": 0}, 0)
    eventually(lambda: run.status().committed_records == 1)
    time.sleep(1.2)  # past the time in which it looks by itself; nothing else can be waited for
    run.log({"a": 1}, 1)
    eventually(lambda: run.status().committed_records == 2, deadline_s=10)


def test_a_database_restored_from_a_backup_is_told_what_it_lost(
    start: Start, gateway: GatewayProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.client.database import fetch

    monkeypatch.setattr("headrace.spool.SEGMENT_BYTES", 1_000)
    run = start()
    for step in range(200):
        run.log({"a": step}, step)
    eventually(lambda: run.status().committed_records == 200)
    spool = Path(str(run.spool))
    eventually(lambda: len(spool_files.segments(spool)) <= 2)
    gateway.kill()
    fetch(gateway.dsn, "UPDATE writers SET committed_sequence = 20")
    fetch(gateway.dsn, "DELETE FROM loose_chunks")
    gateway.start()
    for step in range(200, 300):
        run.log({"a": step}, step)
    status = run.finish(timeout=60)
    assert status.done
    assert status.lost_records > 0
    steps = [step for step, _ in stored(gateway.dsn, run.id).of("a")]
    assert steps == list(range(300 - len(steps), 300))
    assert len(steps) >= 100


def sync(gateway: GatewayProcess, root: Path, *, status: int = 0) -> dict[str, Any]:
    """Runs `headrace sync --json`; its one report, or nothing."""
    finished = subprocess.run(
        [sys.executable, "-m", "headrace.cli", "sync", str(root), "--address", gateway.address,
         "--json", "--timeout", "60"],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert finished.returncode == status, finished.stderr + finished.stdout
    lines = finished.stdout.splitlines()
    assert len(lines) <= 1
    return json.loads(lines[0]) if lines else {}


def _senders_of(spool: Path) -> list[int]:
    """The process ids of its senders, found by their command lines."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"headrace.sender" in command and str(spool).encode() in command:
            found.append(int(path.parent.name))
    return found


def test_the_note_of_a_stopped_sender_says_why(
    start: Start, gateway: GatewayProcess, spool_root: Path
) -> None:
    first = start(step_policy="all")
    first.log({"a": 1})
    first.finish()
    second = start(run_id=first.id, step_policy="first", quiet=True)
    second.log({"a": 2})
    status = second.finish(timeout=30)
    assert "RUN_EXISTS" in status.stopped
    assert not status.done
    note = Note.read(only_spool(spool_root) / spool_files.STATUS_NOTE)
    assert "headrace sync" in note["stopped"]
