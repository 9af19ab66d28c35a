"""`run.log_artifact` and its kin: queued at once, stored behind the trainer's back."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import headrace
import numpy as np
import pytest
from headrace import artifact_queue as queues
from headrace import spool_files
from headrace.artifact_errors import ArtifactError
from headrace.cli import main
from headrace.settings import load_settings
from headrace.uploader import deliver
from headrace.v1.experiment_service_pb2 import CreateWorkspaceRequest
from headrace.v1.experiment_service_pb2_grpc import WorkspaceServiceStub

from tests.artifacts.conftest import MIB, Site
from tests.support.command import Done, run_command
from tests.support.s3_faults import Fault, S3Faults
from tests.support.waiting import eventually

Make = Callable[..., Path]


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def run(site: Site, spool: Path) -> Iterator[headrace.Run]:
    made = headrace.init(address=site.gateway.address, spool_dir=spool, quiet=True, strict=True)
    yield made
    made.finish(0)


def trainer(
    site: Site, spool: Path, code: str, *arguments: object, **variables: str
) -> subprocess.Popen[str]:
    """Start a training program."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        env={
            **os.environ,
            "HEADRACE_ADDRESS": site.gateway.address,
            "HEADRACE_SPOOL_DIR": str(spool),
            "HEADRACE_QUIET": "1",
            **variables,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_files_directories_and_objects_arrive(
    site: Site, run: headrace.Run, make_file: Make, tmp_path: Path
) -> None:
    small, large = make_file(1_000, "small.bin"), make_file(20 * MIB, "large.bin")
    make_file(10, "tree/x")
    make_file(10, "tree/y/z")
    run.log({"loss": 1.0})
    run.log_artifact(small)
    run.log_artifact(large, "models/large.bin")
    run.log_artifact(tmp_path / "tree", "data")
    run.log_text("größer", "notes.txt")
    run.log_json({"a": [1, 2.5]}, "config.json")
    run.log_table({"x": [1, 2], "y": ["a", "b"]}, "table.json")
    run.log_table([{"x": 1}, {"x": 2, "y": 3}], "table.csv")
    status = run.finish(30)
    assert status.done
    artifacts = site.artifacts(run.id)
    assert [entry.path for entry in artifacts.list(recursive=True)] == [
        "config.json", "data/x", "data/y/z", "models/large.bin", "notes.txt", "small.bin",
        "table.csv", "table.json",
    ]  # fmt: skip
    assert artifacts.read("small.bin") == small.read_bytes()
    assert artifacts.read("models/large.bin") == large.read_bytes()
    assert artifacts.read("notes.txt").decode() == "größer"
    assert artifacts.stat("notes.txt").content_type == "text/plain"
    assert json.loads(artifacts.read("config.json")) == {"a": [1, 2.5]}
    assert json.loads(artifacts.read("table.json")) == {
        "columns": ["x", "y"],
        "data": [[1, "a"], [2, "b"]],
    }
    assert artifacts.read("table.csv") == b"x,y\n1,\n2,3\n"
    assert run.artifact_status().stored == 8
    assert not queues.queues(Path(run.spool or tmp_path / "spool"))


def test_figures_are_drawn_in_the_format_of_their_name(site: Site, run: headrace.Run) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().plot([1, 2, 3])
    run.log_figure(figure, "plots/loss.png")
    run.log_figure(figure, "plots/loss.svg")
    run.finish(30)
    artifacts = site.artifacts(run.id)
    assert artifacts.read("plots/loss.png").startswith(b"\x89PNG")
    assert b"<svg" in artifacts.read("plots/loss.svg")


def test_images_and_arrays_of_pixels_are_figures_too(site: Site, run: headrace.Run) -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = np.zeros((4, 6, 3), np.uint8)
    run.log_figure(image.fromarray(pixels), "image.jpg")
    run.log_figure(pixels, "array.png")
    run.finish(30)
    artifacts = site.artifacts(run.id)
    assert artifacts.read("image.jpg").startswith(b"\xff\xd8")
    with artifacts.open("array.png") as file, image.open(file) as opened:
        assert opened.size == (6, 4)


def test_logging_returns_at_once_and_the_file_may_be_deleted(
    site: Site, run: headrace.Run, make_file: Make, faults: S3Faults
) -> None:
    slow = Fault(method="PUT", delay_s=0.1)  # S3 takes a minute and more
    faults.faults.append(slow)
    small, large = make_file(100_000), make_file(40 * MIB)
    content = large.read_bytes()
    began = time.monotonic()
    run.log_artifact(small, "small")
    run.log_artifact(large, "large")
    took_s = time.monotonic() - began
    large.unlink()
    small.write_bytes(b"something else")
    faults.faults.clear()
    slow.delay_s = 0.0  # for what is under way
    assert took_s < 10
    run.finish(30)
    artifacts = site.artifacts(run.id)
    assert artifacts.read("large") == content
    assert artifacts.stat("small").size == 100_000


def test_a_large_file_written_in_place_before_it_is_stored_is_reported(
    site: Site, spool: Path, make_file: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    run = headrace.init(address=site.gateway.address, spool_dir=spool, mode="offline", quiet=True)
    large = make_file(20 * MIB)
    run.log_artifact(large, "large")
    with large.open("r+b") as file:
        file.write(b"changed")
    run.finish(0)
    (queue,) = queues.queues(spool)
    if next(queues.requests(queue))[1].owned:
        pytest.skip("this file system clones: the change does not matter")
    environment = {"HEADRACE_ADDRESS": site.gateway.address}
    synced = run_command(main, "sync", spool, environment=environment)
    assert synced.returncode == 1
    assert "changed after it was logged" in synced.stderr
    assert [entry.path for entry in site.artifacts(run.id).list()] == []
    assert "pending" in capsys.readouterr().err


def test_a_symbolic_link_stands_for_what_it_named_when_it_was_logged(
    site: Site, run: headrace.Run, make_file: Make, tmp_path: Path
) -> None:
    first, second = make_file(2 * MIB, "epoch-1.pt"), make_file(2 * MIB, "epoch-2.pt")
    content = first.read_bytes()
    link = tmp_path / "last.pt"
    link.symlink_to("epoch-1.pt")  # relative, as training loops write them
    run.log_artifact(link)
    link.unlink()
    link.symlink_to(second.name)
    first.unlink()
    run.finish(30)
    assert site.artifacts(run.id).read("last.pt") == content


def test_what_somebody_has_to_put_right_costs_no_artifact(
    site: Site, run: headrace.Run, make_file: Make, faults: S3Faults
) -> None:
    source = make_file(2 * MIB)
    faults.faults.append(Fault(method="PUT", status=403, code="AccessDenied"))
    run.log_artifact(source, "a")
    run.log_text(run.id, "b")
    eventually(lambda: "s3:PutObject" in run.artifact_status().waits_for, "the reason")
    status = run.artifact_status()
    assert (status.stored, status.pending, status.failed) == (0, 2, ())
    assert "s3:PutObject" in status.summary()
    faults.faults.clear()  # the permission is granted
    run.finish(30)
    assert run.artifact_status().done
    assert [entry.path for entry in site.artifacts(run.id).list()] == ["a", "b"]


def test_what_nobody_put_right_in_time_is_left_for_sync(
    site: Site, spool: Path, make_file: Make, faults: S3Faults, capsys: pytest.CaptureFixture[str]
) -> None:
    def headrace_cli(*arguments: str) -> Done:
        environment = {"HEADRACE_ADDRESS": site.gateway.address}
        return run_command(main, *arguments, spool, environment=environment)

    faults.faults.append(Fault(method="PUT", status=403, code="AccessDenied"))
    run = headrace.init(address=site.gateway.address, spool_dir=spool, quiet=True)
    source = make_file(1_000)
    run.log_artifact(source, "a")
    eventually(lambda: "DENIED" in run.artifact_status().waits_for, "the reason")
    busy = headrace_cli("sync")
    assert busy.returncode == 1
    assert "its uploader is at work" in busy.stderr
    run.finish(0)
    told = capsys.readouterr().err
    assert "1 pending (BLOB_STORE_DENIED" in told
    assert f"headrace sync {spool}" in told

    def uploader_gone() -> bool:
        shown = headrace_cli("status", "--json").stdout.splitlines()
        assert any(json.loads(line).get("pending") == 1 for line in shown)
        (queue,) = queues.queues(spool)
        with spool_files.claimed(queue / queues.UPLOADER_LOCK) as free:
            return free

    eventually(uploader_gone, "the uploader's end")
    assert headrace_cli("sync").returncode == 1
    faults.faults.clear()
    done = headrace_cli("sync")
    assert done.returncode == 0, done.stderr
    assert site.artifacts(run.id).read("a") == source.read_bytes()


def test_a_run_that_nobody_creates_does_not_keep_its_uploader_for_ever(
    site: Site, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.uploader.RUN_PATIENCE_S", 0.5)
    queue = queues.ArtifactQueue(spool, os.urandom(16).hex())
    queue.add_bytes(b"kept", "a", "")
    queue.close()
    settings = load_settings(address=site.gateway.address, spool_dir=spool)
    assert deliver(queue.directory, settings, deadline=None) is False
    status = queues.status_of(queue.directory)
    assert (status.pending, status.failed) == (1, ())
    assert "RUN_NOT_FOUND" in status.waits_for


def test_the_last_call_for_a_path_wins(site: Site, run: headrace.Run) -> None:
    for number in range(50):
        run.log_text(str(number), "counter.txt")
    run.finish(30)
    assert site.artifacts(run.id).read("counter.txt") == b"49"


def test_a_killed_trainers_artifacts_arrive_all_the_same(
    site: Site, spool: Path, make_file: Make, faults: S3Faults
) -> None:
    source = make_file(40 * MIB)
    faults.faults.append(Fault(method="PUT", delay_s=0.002))
    process = trainer(
        site,
        spool,
        """
        import sys, time, headrace
        run = headrace.init()
        run.log_artifact(sys.argv[1], "a")
        print(run.id, flush=True)
        time.sleep(60)
        """,
        source,
    )
    assert process.stdout is not None
    run_id = process.stdout.readline().strip()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.communicate()
    faults.faults.clear()

    def arrived() -> bool:
        try:
            return [entry.path for entry in site.artifacts(run_id).list()] == ["a"]
        except ArtifactError as error:
            # The uploader creates no run: the dead trainer's sender does.
            if error.reason != "RUN_NOT_FOUND":
                raise
            return False

    eventually(arrived, "the artifact")
    assert site.artifacts(run_id).read("a") == source.read_bytes()
    eventually(lambda: not queues.queues(spool), "the uploader's end")


def test_a_killed_uploader_is_started_again_and_sends_only_what_is_missing(
    site: Site, run: headrace.Run, make_file: Make, faults: S3Faults
) -> None:
    source = make_file(96 * MIB)
    faults.faults.append(Fault(method="PUT", query="partNumber", delay_s=0.001))
    run.log_artifact(source, "a")
    eventually(lambda: len(faults.parts_stored()) >= 2, "two parts")
    uploader = run._artifacts._uploader
    assert uploader is not None
    uploader.kill()
    uploader.wait()
    run.finish(60)
    assert len(faults.parts_stored()) <= 6 + 4
    assert site.artifacts(run.id).read("a") == source.read_bytes()


def test_offline_artifacts_wait_for_sync(site: Site, spool: Path, make_file: Make) -> None:
    source = make_file(20 * MIB)
    run = headrace.init(spool_dir=spool, mode="offline", quiet=True)
    run.log({"loss": 1.0})
    run.log_artifact(source, "a")
    run.log_text("hello", "b")
    run.finish()
    environment = {"HEADRACE_ADDRESS": site.gateway.address}
    done = run_command(main, "sync", spool, environment=environment)
    assert done.returncode == 0, done.stderr
    assert [entry.path for entry in site.artifacts(run.id).list()] == ["a", "b"]
    assert site.artifacts(run.id).read("a") == source.read_bytes()
    assert not queues.queues(spool)


def test_what_a_power_loss_damaged_is_reported_and_the_rest_is_stored(
    site: Site, spool: Path, make_file: Make
) -> None:
    def offline() -> tuple[str, Path]:
        known = set(queues.queues(spool))
        run = headrace.init(spool_dir=spool, mode="offline", quiet=True)
        run.log_artifact(make_file(1_000), "file")
        for name in ("emptied", "cut", "overwritten", "good"):
            run.log_text(name, name)
        run.finish()
        (queue,) = set(queues.queues(spool)) - known
        return run.id, queue

    def headrace_cli(*arguments: str, status: int) -> str:
        environment = {"HEADRACE_ADDRESS": site.gateway.address, "COLUMNS": "1000"}
        done = run_command(main, *arguments, spool, environment=environment)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    (hurt, queue), (nameless, its_queue), (whole, _) = offline(), offline(), offline()
    (queue / "00000001.content").write_bytes(b"cut")
    (queue / "00000002.json").write_bytes(b"")
    (queue / "00000003.json").write_bytes((queue / "00000003.json").read_bytes()[:20])
    (queue / "00000004.content").write_bytes(b"\0" * len("overwritten"))
    (queue / "failed" / "00000009.json").write_bytes(b"")
    (its_queue / "queue.json").write_bytes(b"")  # its name still tells the run
    lost = its_queue.with_name("lost")
    lost.mkdir()
    (lost / "queue.json").write_bytes(b"\0" * 40)
    headrace_cli("status", status=0)
    headrace_cli("status", "--json", status=0)
    told = headrace_cli("sync", status=1)
    assert "'file' failed: " in told
    assert "what the queue kept of it is damaged" in told
    assert "lost: not stored: " in told
    headrace_cli("status", status=0)
    assert [entry.path for entry in site.artifacts(hurt).list()] == ["good"]
    assert len(queues.status_of(queue).failed) == 5
    assert (queue / "failed" / "00000002.content").read_text() == "emptied"
    for run_id in (nameless, whole):
        paths = [entry.path for entry in site.artifacts(run_id).list()]
        assert paths == ["cut", "emptied", "file", "good", "overwritten"]


def test_a_full_disk_costs_the_artifact_and_not_the_training(site: Site, spool: Path) -> None:
    process = trainer(
        site,
        spool,
        """
        import resource, signal, sys, headrace
        run = headrace.init()
        run.log_text("before", "before.txt")
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        run.log_text("x" * 10_000, "full.txt")
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        run.log_text("after", "after.txt")
        run.finish(30)
        print(run.id, run.artifact_status().dropped)
        """,
    )
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    run_id, dropped = out.split()
    assert dropped == "1"
    assert "dropped for lack of disk" in err
    assert "'full.txt' was not queued" in err
    paths = [entry.path for entry in site.artifacts(run_id).list()]
    assert paths == ["after.txt", "before.txt"]


def test_what_cannot_be_logged_is_said_once_and_training_goes_on(
    site: Site, spool: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = headrace.init(address=site.gateway.address, spool_dir=spool, quiet=True)
    run.log_artifact("/nowhere/at/all")
    run.log_text("x", "../escape")
    run.log_figure(object(), "a.png")
    run.log_table({"a": [1], "b": [1, 2]}, "t.csv")
    assert len([r for r in caplog.records if "artifact is not logged" in r.message]) == 1
    run.finish(10)
    strict = headrace.init(address=site.gateway.address, spool_dir=spool, quiet=True, strict=True)
    with pytest.raises(headrace.HeadraceError, match="does not exist"):
        strict.log_artifact("/nowhere/at/all")
    strict.finish(10)
    headrace.init(mode="disabled", spool_dir=spool).log_text("x", "y")


def test_a_forked_worker_logs_artifacts_of_its_own(site: Site, spool: Path) -> None:
    process = trainer(
        site,
        spool,
        """
        import os, headrace
        run = headrace.init()
        run.log_text("parent", "parent.txt")
        child = os.fork()
        if child == 0:
            run.log_text("child", "child.txt")
            run.finish(20)
            os._exit(0)
        os.waitpid(child, 0)
        run.finish(20)
        print(run.id)
        """,
    )
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    paths = [entry.path for entry in site.artifacts(out.strip()).list()]
    assert paths == ["child.txt", "parent.txt"]


def test_the_command_line_puts_gets_lists_verifies_and_removes(
    site: Site, make_file: Make, tmp_path: Path
) -> None:
    run_id, source = site.create_run(), make_file(20 * MIB, "model.bin")

    def call(*arguments: object, status: int = 0) -> str:
        environment = {"HEADRACE_ADDRESS": site.gateway.address}
        done = run_command(
            main, "artifacts", *arguments, environment=environment, directory=tmp_path
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    call("put", run_id, source, "--name", "models/model.bin")
    listed = json.loads(call("ls", run_id, "models", "--json"))
    assert (listed["path"], listed["size"]) == ("models/model.bin", 20 * MIB)
    assert "good" in call("verify", run_id)
    call("get", run_id, "models", "copy")
    assert (tmp_path / "copy" / "model.bin").read_bytes() == source.read_bytes()
    call("verify", run_id, "models", "--against", tmp_path / "copy")
    (tmp_path / "copy" / "model.bin").write_bytes(b"other")
    assert "differs" in call("verify", run_id, "models", "--against", "copy", status=1)
    assert "1 deleted" in call("rm", run_id, "models", "--recursive")
    assert "ARTIFACT_NOT_FOUND" in call("rm", run_id, "models", status=3)


def test_files_of_a_run_in_another_workspace_are_stored_and_found_by_its_name(
    site: Site, spool: Path
) -> None:
    WorkspaceServiceStub(site.channel).CreateWorkspace(CreateWorkspaceRequest(name="other"))
    with headrace.init(
        address=site.gateway.address, workspace="other", spool_dir=spool, quiet=True
    ) as run:
        run.log_text("converged", "notes.txt")
    with headrace.Client(site.gateway.address, workspace="other") as client:
        assert client.artifacts(run.id).read("notes.txt") == b"converged"
        name = client.run(run.id).name
    for named in (name, run.id[:16]):
        where = ("--address", site.gateway.address, "--workspace", "other")
        done = run_command(main, "artifacts", "ls", named, "--json", *where)
        assert json.loads(done.stdout)["path"] == "notes.txt"
