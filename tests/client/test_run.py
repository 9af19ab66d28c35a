"""`run.log` in a training loop, without a gateway: every call is in the spool, or counted."""

import json
import logging
import math
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import headrace
import numpy as np
import pytest
from headrace import artifact_queue, spool_files
from headrace.errors import ConfigurationError
from headrace.status import FAILED, FINISHED

from tests.client.reading import Point, only_spool, read_spool


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., headrace.Run]]:
    """Starts an offline run in `tmp_path`."""
    runs = []

    def start_run(**options: Any) -> headrace.Run:
        runs.append(headrace.init(mode="offline", spool_dir=tmp_path, quiet=True, **options))
        return runs[-1]

    yield start_run
    for run in runs:
        run.finish()


def logged(run: headrace.Run) -> list[Point]:
    """What the run has in its spool."""
    assert run.spool is not None
    return read_spool(Path(run.spool))


def test_steps_count_up_from_the_greatest_one(start: Callable[..., headrace.Run]) -> None:
    run = start()
    for step in (None, None, 10, 3, None, np.int64(20), None):
        run.log({"loss": 1.0}, step)
    assert [point.step for point in logged(run)] == [0, 1, 10, 3, 11, 20, 21]


def test_automatic_steps_begin_at_the_resume_step(start: Callable[..., headrace.Run]) -> None:
    run = start(attempt=2, resume_step=500)
    run.log({"loss": 1.0})
    assert [point.step for point in logged(run)] == [500]


class Scalar:
    """Like a tensor of one element of some library: `item()` and nothing else."""

    def __init__(self, value: object) -> None:
        self.value = value

    def item(self) -> object:
        return self.value


def test_numbers_of_every_kind_are_kept_exactly(start: Callable[..., headrace.Run]) -> None:
    run = start()
    values = {
        "int": 3,
        "bool": True,
        "float": -0.0,
        "inf": math.inf,
        "minus_inf": -math.inf,
        "float32": np.float32(0.1),
        "int8": np.int8(-5),
        "bool_": np.bool_(True),
        "zero_dimensional": np.array(2.5),
        "one_element": np.array([7.5]),
        "tensor": Scalar(4),
    }
    for _ in range(2):  # the second call takes the fast path
        run.log(values)
    expected = [3.0, 1.0, -0.0, math.inf, -math.inf, float(np.float32(0.1)), -5.0, 1.0, 2.5]
    assert [point.value for point in logged(run)] == 2 * [*expected, 7.5, 4.0]
    run.log({"nan": float("nan")})
    assert math.isnan(logged(run)[-1].value)


def test_nested_mappings_become_paths(start: Callable[..., headrace.Run]) -> None:
    run = start()
    run.log({"train": {"loss": 1, "layer": {"0": 2}}, "epoch": 3}, step=0)
    assert [(p.key, p.value) for p in logged(run)] == [
        ("train/loss", 1.0),
        ("train/layer/0", 2.0),
        ("epoch", 3.0),
    ]


class Several:
    """Like a tensor of several elements."""

    def item(self) -> object:
        raise RuntimeError("a Tensor with 2 elements cannot be converted to Scalar")

    def __float__(self) -> float:
        raise RuntimeError("only one element tensors can be converted to Python scalars")


BAD = {
    "value": ({"a": "text"}, None, "a"),
    "none": ({"a": None}, None, "NoneType"),
    "array": ({"a": np.zeros(3)}, None, "ndarray"),
    "complex": ({"a": 1j}, None, "complex"),
    "empty key": ({"": 1}, None, "empty"),
    "long key": ({"k" * 251: 1}, None, "251"),
    "control": ({"a\0b": 1}, None, "control"),
    "surrogate": ({"\ud800": 1}, None, "Unicode"),
    "no text": ({5: 1}, None, "int"),
    "step": ({"a": 1}, 2**62, str(2**62)),
    "float step": ({"a": 1}, 1.5, "1.5"),
    "tensor": ({"a": Several()}, None, "Several"),
    "array step": ({"a": 1}, np.array([1, 2]), "ndarray"),
    "tensor step": ({"a": 1}, Several(), "Several"),
    "text step": ({"a": 1}, "1", "str"),
    "no mapping": ([1, 2], None, "list"),
    "nothing": (None, None, "NoneType"),
    "no mapping at a bad step": (5, 1.5, "1.5"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_no_gateway_would_accept_is_counted_and_named_once(
    start: Callable[..., headrace.Run], caplog: pytest.LogCaptureFixture, name: str
) -> None:
    metrics, step, named = BAD[name]
    run = start()
    with caplog.at_level(logging.WARNING, logger="headrace"):
        for _ in range(3):
            run.log(metrics, step)  # type: ignore[arg-type]
    assert run.status().refused_points >= 3
    (record,) = caplog.records
    assert named in record.getMessage()
    run.log({"good": 1.0}, step=0)
    assert [point.key for point in logged(run)] == ["good"]


@pytest.mark.parametrize("name", BAD)
def test_strict_raises_what_is_otherwise_counted(
    start: Callable[..., headrace.Run], name: str
) -> None:
    metrics, step, named = BAD[name]
    run = start(strict=True)
    with pytest.raises(headrace.InvalidMetricError, match=named):
        run.log(metrics, step)  # type: ignore[arg-type]
    run.log({"good": 1.0}, step=0)
    assert [point.key for point in logged(run)] == ["good"]


def test_one_bad_value_does_not_cost_its_neighbours(start: Callable[..., headrace.Run]) -> None:
    run = start()
    run.log({"a": 1, "b": "text", "c": 3}, step=0)
    run.log({"a": 1, "b": 2, "c": 3}, step=1)
    run.log({"a": 1, "b": [], "c": 3}, step=2)
    assert [(p.key, p.step) for p in logged(run)] == [
        ("a", 0), ("c", 0), ("a", 1), ("b", 1), ("c", 1), ("a", 2), ("c", 2),
    ]  # fmt: skip


def test_more_points_than_a_record_holds_become_several(
    start: Callable[..., headrace.Run],
) -> None:
    run = start()
    metrics = {f"key_{index}": float(index) for index in range(20_000)}
    run.log(metrics, step=5)
    run.log(metrics, step=6)
    assert run.status().logged_records == 6
    points = logged(run)
    assert [(p.key, p.value) for p in points] == 2 * list(metrics.items())
    assert [p.step for p in points] == 20_000 * [5] + 20_000 * [6]


def test_keys_beyond_the_limit_are_refused_and_the_others_kept(
    start: Callable[..., headrace.Run],
) -> None:
    run = start()
    run.log({f"key_{index}": 0.0 for index in range(100_000)})
    run.log({"key_7": 1.0, "one_too_many": 2.0})
    assert run.status().refused_points == 1
    assert logged(run)[-1] == Point(key="key_7", step=1, value=1.0)


def test_threads_log_at_once_and_nothing_is_lost_or_mixed(
    start: Callable[..., headrace.Run],
) -> None:
    run = start()
    calls = 2_000

    def work(thread: int) -> None:
        for step in range(calls):
            run.log({f"{thread}/a": step, f"{thread}/b": -step}, step)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    points = logged(run)
    assert len(points) == 4 * calls * 2
    for number in range(4):
        mine = [(p.step, p.value) for p in points if p.key == f"{number}/a"]
        assert mine == [(step, float(step)) for step in range(calls)]


def test_interrupts_at_any_place_leave_a_sound_spool(start: Callable[..., headrace.Run]) -> None:
    class Interrupt(BaseException):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupt

    run = start()
    returned = []
    before = signal.signal(signal.SIGALRM, interrupt)
    step = interrupts = 0
    try:
        while interrupts < 200:
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.0002 + 0.00001 * (interrupts % 30))
                while True:
                    step += 1
                    run.log({"a": 1.0, "b": 2.0}, step)
                    returned.append(step)
            except Interrupt:
                interrupts += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    run.log({"a": 1.0, "b": 2.0}, step + 1)
    steps = [point.step for point in logged(run) if point.key == "a"]
    assert set(returned) <= set(steps)
    assert len(steps) == len(set(steps))


def test_a_signal_handler_may_log_in_the_middle_of_a_log_call(
    start: Callable[..., headrace.Run],
) -> None:
    run = start()
    handled = 0

    def handler(*_: object) -> None:
        nonlocal handled
        handled += 1
        run.log({"from_handler": 1.0}, handled)

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    calls = 0
    try:
        while handled < 200:
            run.log({"from_loop": 1.0}, calls)
            calls += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    keys = [point.key for point in logged(run)]
    assert keys.count("from_handler") == handled
    assert keys.count("from_loop") == calls


def test_a_slow_artifact_call_holds_up_no_other_thread(
    start: Callable[..., headrace.Run],
) -> None:
    run = start()
    begun, ending = threading.Event(), threading.Event()

    class Slow:
        """Like an array that takes its time to become a list."""

        def tolist(self) -> list[int]:
            begun.set()
            assert ending.wait(60)
            return [1]

    def others() -> None:
        run.log({"loss": 1.0}, 0)
        run.log_text("text", "text.txt")

    slow = threading.Thread(target=run.log_json, args=({"slow": Slow()}, "slow.json"))
    other = threading.Thread(target=others)
    slow.start()
    assert begun.wait(60)
    other.start()
    other.join(20)
    held_up = other.is_alive()
    pending = run.artifact_status().pending
    ending.set()
    slow.join()
    other.join()
    assert not held_up
    assert pending == 1
    assert run.artifact_status().pending == 2
    assert [point.key for point in logged(run)] == ["loss"]


LOCKS = """
import sys
from pathlib import Path
from headrace import spool_files
for name in sys.argv[1:]:
    with spool_files.claimed(Path(name) / "trainer.lock") as free:
        print(free)
"""


def test_a_directory_that_contains_the_spool_is_logged_without_it(
    start: Callable[..., headrace.Run], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = start()
    run.log({"loss": 1.0})
    run.log_text("text", "notes.txt")  # makes the queue
    (queue,) = artifact_queue.queues(tmp_path)
    (tmp_path / "result.txt").write_text("good")
    run.log_artifact(tmp_path, "outputs")
    assert run.spool is not None
    (tmp_path / "link").symlink_to(Path(run.spool) / spool_files.TRAINER_LOCK)
    run.log_artifact(tmp_path / "link")
    assert "the lock of a spool" in caplog.text
    paths = [request.path for _, request in artifact_queue.requests(queue)]
    assert paths == ["notes.txt", "outputs/result.txt"]
    assert _python(LOCKS, run.spool, queue).split() == ["False", "False"]


def test_a_full_spool_drops_counts_and_goes_on_once_there_is_room(
    start: Callable[..., headrace.Run],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("headrace.spool.SEGMENT_BYTES", 300_000)
    run = start(spool_bytes_max=1_000)
    big = {f"key_{index}": 0.0 for index in range(8_000)}
    with caplog.at_level(logging.WARNING, logger="headrace"):
        for _ in range(20):
            run.log(big)
    status = run.status()
    assert status.dropped_points > 0
    assert status.dropped_points + len(logged(run)) == 20 * 8_000
    assert len(caplog.records) == 1
    assert run.spool is not None
    note = spool_files.Note.read(Path(run.spool) / spool_files.TRAINER_NOTE)
    assert note["dropped_points"] == status.dropped_points


DISK_FULL = """
import json, resource, sys
import headrace
run = headrace.init(mode="offline", spool_dir=sys.argv[1], quiet=True)
metrics = {f"key_{index}": 1.0 for index in range(50)}
run.log(metrics, 0)
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
for step in range(1, 200):
    run.log(metrics, step)
run.log({"key_after": 1.0, "new_key": 2.0}, 200)
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
for step in range(300, 310):
    run.log(metrics, step)
print(json.dumps([str(run.spool), run.status().dropped_points]))
"""


def test_a_disk_that_fills_up_in_the_middle_of_a_record_costs_only_what_did_not_fit(
    tmp_path: Path,
) -> None:
    spool, dropped = json.loads(_python(DISK_FULL, tmp_path))
    points = read_spool(Path(spool))
    assert dropped > 0
    assert dropped + len(points) == 210 * 50 + 2
    assert [p.step for p in points if p.key == "key_0"][-10:] == list(range(300, 310))


KILLED = """
import os, signal, sys
import headrace
run = headrace.init(mode="offline", spool_dir=sys.argv[1], quiet=True)
for step in range(int(sys.argv[2])):
    run.log({"a": 1.0, "b": 2.0}, step)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("calls", [1, 2, 1_000])
def test_sigkill_right_after_log_loses_nothing(tmp_path: Path, calls: int) -> None:
    _python(KILLED, tmp_path, str(calls), status=-signal.SIGKILL)
    points = read_spool(only_spool(tmp_path))
    assert [p.step for p in points if p.key == "a"] == list(range(calls))


def test_importing_and_logging_imports_neither_numpy_nor_grpc(tmp_path: Path) -> None:
    script = (
        "import sys, headrace\n"
        "run = headrace.init(mode='offline', spool_dir=sys.argv[1], quiet=True)\n"
        "run.log({'a': {'b': 1}})\n"
        "print([name for name in ('numpy', 'grpc', 'google.protobuf', 'asyncio')\n"
        "       if name in sys.modules])\n"
    )
    assert _python(script, tmp_path).strip() == "[]"


@pytest.mark.parametrize(
    ("ending", "state"),
    [
        ("", FINISHED),
        ("raise RuntimeError", FAILED),
        ("import os; run.finish(state='failed')", FAILED),
    ],
)
def test_leaving_the_interpreter_tells_how_the_run_ended(
    tmp_path: Path, ending: str, state: int
) -> None:
    script = (
        "import sys, headrace\n"
        "run = headrace.init(mode='offline', spool_dir=sys.argv[1], quiet=True)\n"
        "headrace.log({'a': 1})\n" + ending
    )
    _python(script, tmp_path, status=1 if "raise" in ending else 0)
    note = spool_files.Note.read(only_spool(tmp_path) / spool_files.TRAINER_NOTE)
    assert note["state"] == state
    assert note["last_sequence"] == 1


def test_the_context_manager_fails_the_run_on_an_exception(tmp_path: Path) -> None:
    def train() -> None:
        with headrace.init(mode="offline", spool_dir=tmp_path, quiet=True) as run:
            run.log({"a": 1})
            raise KeyError

    with pytest.raises(KeyError):
        train()
    note = spool_files.Note.read(only_spool(tmp_path) / spool_files.TRAINER_NOTE)
    assert note["state"] == FAILED


def test_a_finished_run_refuses_and_finishing_again_is_nothing(
    start: Callable[..., headrace.Run],
) -> None:
    run = start()
    run.log({"a": 1})
    first = run.finish()
    run.log({"a": 2})
    assert run.finish().refused_points == 1
    assert first.logged_records == 1


@pytest.mark.parametrize("metrics", [None, 5])
def test_what_is_no_mapping_is_counted_after_the_end_and_without_a_spool_too(
    start: Callable[..., headrace.Run], tmp_path: Path, metrics: Any
) -> None:
    finished = start()
    finished.finish()
    finished.log(metrics)
    assert finished.status().refused_points == 1
    (tmp_path / "file").write_text("")
    without = headrace.init(mode="offline", spool_dir=tmp_path / "file", quiet=True)
    without.log(metrics)
    assert without.finish().dropped_points == 1


def test_an_unusable_spool_directory_does_not_stop_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    run = headrace.init(mode="offline", spool_dir=blocked, quiet=True)
    run.log({"a": 1, "b": 2})
    assert run.finish().dropped_points == 2
    assert any("spool" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("field", ["experiment", "name"])
@pytest.mark.parametrize("text", ["two\nlines", "nul\0", "\x9b31m", "\udc80"])
def test_names_that_no_gateway_takes_are_refused_at_once(
    tmp_path: Path, field: str, text: str
) -> None:
    options: dict[str, Any] = {field: text}
    with pytest.raises(ConfigurationError, match=field):
        headrace.init(mode="offline", spool_dir=tmp_path, **options)


def test_a_disabled_run_does_nothing(tmp_path: Path) -> None:
    run = headrace.init(mode="disabled", spool_dir=tmp_path)
    run.log({"a": 1})
    assert run.finish().done
    assert list(tmp_path.iterdir()) == []


def _python(script: str, *arguments: object, status: int = 0) -> str:
    finished = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == status, finished.stderr
    return finished.stdout
