"""The sender samples the machine and keeps the console, beside the trainer and never in its way."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import headrace
import pytest
from headrace.console import ConsoleCapture
from headrace.system_keys import MACHINE_KEYS, SYSTEM_KEYS
from headrace.system_metrics import SystemSampler

from tests.artifacts.conftest import BucketAccess, Site, open_site, server, with_own_prefix
from tests.client.database import stored_when
from tests.conftest import NewDatabase
from tests.support.gateway_process import GatewayProcess
from tests.support.waiting import eventually

__all__ = ["server"]

FAKE_GPUS = '''
"""Stands in for NVIDIA's library: two GPUs, one of which has no power sensor."""
from types import SimpleNamespace
NVML_TEMPERATURE_GPU = 0
def nvmlInit(): pass
def nvmlShutdown(): pass
def nvmlDeviceGetCount(): return 2
def nvmlDeviceGetHandleByIndex(index): return index
def nvmlDeviceGetUtilizationRates(handle): return SimpleNamespace(gpu=50 + handle)
def nvmlDeviceGetMemoryInfo(handle): return SimpleNamespace(used=2**30, total=2**32)
def nvmlDeviceGetTemperature(handle, sensor): return 60
def nvmlDeviceGetPowerUsage(handle):
    if handle:
        raise RuntimeError("not supported")
    return 150_000
'''


HUNG_DRIVER = """
import threading
def nvmlInit(): threading.Event().wait()
"""

NO_PROC = """
class Error(Exception): pass
def __getattr__(name):
    def fails(*args): raise PermissionError(f"[Errno 13] Permission denied: '/proc' ({name})")
    return fails
"""


def put_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: str) -> None:
    """Give senders that start from now on a module before those that are installed."""
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / f"{name}.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(modules), prepend=os.pathsep)


def ended(pid: int) -> bool:
    """Whether a process is gone, or has only its exit status left."""
    try:
        return not Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.fixture
def spools(tmp_path: Path) -> Path:
    return tmp_path / "spool"


def system_points(gateway: GatewayProcess, run_id: str) -> dict[str, Any]:
    with headrace.Client(gateway.address) as client:
        return {s.key: s for s in client.read(run_id) if s.key.startswith("system/")}


def test_the_machine_is_sampled_under_system(
    gateway: GatewayProcess, tmp_path: Path, spools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_before(tmp_path, monkeypatch, "pynvml", FAKE_GPUS)
    run = headrace.init(
        address=gateway.address, spool_dir=spools, quiet=True,
        system_metrics=True, system_metrics_interval_s=0.2,
    )  # fmt: skip
    run.log({"loss": 1.0})
    eventually(lambda: run.status().committed_records == 1)
    eventually(lambda: len(system_points(gateway, run.id)) > 0)
    assert run.finish().done
    found = system_points(gateway, run.id)
    assert set(found) <= set(SYSTEM_KEYS)
    assert {"system/cpu_percent", "system/process/memory_bytes"} <= set(found)
    assert found["system/gpu/1/utilization_percent"].value.tolist()[0] == 51.0
    assert found["system/gpu/0/power_watts"].value.tolist()[0] == 150.0
    assert "system/gpu/1/power_watts" not in found
    assert 0 <= found["system/cpu_percent"].step.min() < 60
    stored = stored_when(gateway.dsn, run.id, lambda now: now.finished_writers == now.writers)
    assert stored.writers == 2


def test_one_flag_turns_it_off_and_one_process_of_a_machine_does_it(
    gateway: GatewayProcess, spools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {
        "address": gateway.address, "spool_dir": spools, "quiet": True,
        "system_metrics_interval_s": 0.1,
    }  # fmt: skip
    off = headrace.init(system_metrics=False, **options)
    assert off._recorder.identity.system_metrics_interval_s == 0
    monkeypatch.setenv("HEADRACE_SYSTEM_METRICS", "0")
    also_off = headrace.init(**options)
    assert also_off._recorder.identity.system_metrics_interval_s == 0
    monkeypatch.setenv("HEADRACE_SYSTEM_METRICS", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    second_rank = headrace.init(**options)
    assert second_rank._recorder.identity.system_metrics_interval_s == 0
    monkeypatch.setenv("LOCAL_RANK", "0")
    first_rank = headrace.init(**options)
    assert first_rank._recorder.identity.system_metrics_interval_s == 0.1
    for run in (off, also_off, second_rank, first_rank):
        assert run.finish().done
    with pytest.raises(headrace.ConfigurationError, match="SYSTEM_METRICS_INTERVAL_S"):
        headrace.init(**(options | {"system_metrics_interval_s": 0.01}))


def test_a_resume_step_does_not_hide_system_metrics(gateway: GatewayProcess, spools: Path) -> None:
    options: dict[str, Any] = {"address": gateway.address, "spool_dir": spools, "quiet": True}
    first = headrace.init(**options)
    first.log({"loss": 1.0, "system/cpu_percent": 50.0}, 500)
    point = first.resume_point(10)
    first.finish()
    headrace.init(resume=point, **options).finish()
    with headrace.Client(gateway.address) as client:
        assert [s.key for s in client.read(first.id)] == ["system/cpu_percent"]
        exempt = client._run_message(first.id).attempts[1].resume_exempt_keys
    assert set(exempt) == set(SYSTEM_KEYS)


def test_what_cannot_be_measured_is_left_out(tmp_path: Path) -> None:
    sampler = SystemSampler(2**22 + 1, tmp_path / "nowhere")  # no such process, no such disk
    values = sampler.sample()
    sampler.close()
    assert set(values) <= set(MACHINE_KEYS)
    assert "system/process/cpu_percent" not in values
    assert "system/disk_used_percent" not in values
    assert values["system/memory_used_bytes"] > 0


@pytest.mark.parametrize(
    "fake", [("pynvml", HUNG_DRIVER), ("psutil", NO_PROC)], ids=["hung driver", "no /proc"]
)
def test_a_machine_that_cannot_be_sampled_costs_the_samples_alone(
    gateway: GatewayProcess,
    tmp_path: Path,
    spools: Path,
    monkeypatch: pytest.MonkeyPatch,
    fake: tuple[str, str],
) -> None:
    put_before(tmp_path, monkeypatch, *fake)
    run = headrace.init(
        address=gateway.address, spool_dir=spools, quiet=True,
        system_metrics=True, system_metrics_interval_s=0.1,
    )  # fmt: skip
    run.log({"loss": 1.0})
    assert run._recorder._sender is not None
    sender = run._recorder._sender._process
    assert sender is not None
    eventually(lambda: run.status().committed_records == 1)
    assert run.finish().done
    eventually(lambda: ended(sender.pid), "the sender's end")
    assert system_points(gateway, run.id) == {}


@pytest.fixture(scope="module")
def site(
    new_database: NewDatabase, server: BucketAccess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """A gateway with a bucket."""
    directory = tmp_path_factory.mktemp("site")
    with new_database() as dsn, open_site(dsn, directory, with_own_prefix(server)) as opened:
        yield opened


_TALKING = """
import os, signal, sys, headrace
run = headrace.init(console=True)
print("to standard output")
print("to standard error", file=sys.stderr)
{end}
"""


@pytest.mark.parametrize(
    ("end", "kept"),
    [
        ("run.finish(); print('after the end')", []),
        ("raise RuntimeError('the reason')", ["RuntimeError: the reason"]),
        ("sys.stdout.flush(); os.kill(os.getpid(), signal.SIGKILL)", []),
    ],
    ids=["finished", "failed", "killed"],
)
def test_the_console_becomes_an_artifact_however_the_trainer_ends(
    site: Site, tmp_path: Path, end: str, kept: list[str]
) -> None:
    run_id = os.urandom(16).hex()
    done = subprocess.run(
        [sys.executable, "-c", _TALKING.format(end=end)],
        env={
            **os.environ,
            "HEADRACE_ADDRESS": site.gateway.address,
            "HEADRACE_SPOOL_DIR": str(tmp_path / "spool"),
            "HEADRACE_RUN_ID": run_id,
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "to standard output" in done.stdout
    assert "to standard error" in done.stderr
    stored_when(site.gateway.dsn, run_id, lambda now: now.state > 1)
    artifacts = site.artifacts(run_id)
    eventually(lambda: bool(list(artifacts.list("console"))))
    target = artifacts.download("console/rank-0-attempt-1.log", tmp_path / "console.log")
    text = Path(target).read_text()
    assert text.startswith("to standard output\nto standard error\n")
    assert all(line in text for line in kept)
    assert "after the end" not in text


def test_the_copy_is_bounded_and_its_failure_is_not_the_trainers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capture = ConsoleCapture(tmp_path / "console.log", bytes_max=10)
    print("12345")
    print("67890")
    capture.stop()
    print("not kept")
    assert (tmp_path / "console.log").read_text() == "12345\n6789\n[2 more bytes were not kept]\n"
    nowhere = ConsoleCapture(tmp_path / "none" / "console.log")
    print("still printed", flush=True)
    nowhere.stop()
    assert capsys.readouterr().out == "12345\n67890\nnot kept\nstill printed\n"
