"""The `headrace` command against a real gateway."""

import json
import os
import stat
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import headrace
import pytest
from headrace import spool_files
from headrace.cli import gateway as cli_gateway
from headrace.cli import main
from headrace.cli.gateway import ExitCode
from headrace.client import Client
from headrace.v1.run_service_pb2 import ReopenRunRequest

from tests.client.database import fetch
from tests.support.command import Done, run_command
from tests.support.gateway_process import GatewayProcess
from tests.support.waiting import eventually

Call = Callable[..., Done]


@pytest.fixture
def call(shared_gateway: GatewayProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Runs the command in this process; `exit_code=` says how it must end."""
    monkeypatch.setattr(cli_gateway, "PATIENCE_S", 1.0)

    def run(
        *arguments: object,
        exit_code: int = 0,
        stdin: str = "",
        environment: dict[str, str] | None = None,
    ) -> Done:
        done = run_command(
            main,
            *arguments,
            stdin=stdin,
            environment={
                "HEADRACE_ADDRESS": shared_gateway.address,
                "HEADRACE_SPOOL_DIR": str(tmp_path / "spool"),
                "HEADRACE_LOGIN_FILE": str(tmp_path / "login.json"),
                **(environment or {}),
            },
        )
        assert done.returncode == exit_code, done.stdout + done.stderr
        return done

    return run


def lines(done: Done) -> list[Any]:
    """What --json printed."""
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def experiment() -> str:
    return f"team/commands/{uuid.uuid4().hex[:8]}"


@pytest.fixture
def train(
    shared_gateway: GatewayProcess, tmp_path: Path, experiment: str
) -> Callable[..., headrace.Run]:
    """A finished run of ten steps."""

    def run_training(loss: float = 1.0, **options: Any) -> headrace.Run:
        run = headrace.init(
            experiment=experiment, address=shared_gateway.address, quiet=True,
            spool_dir=tmp_path / "spool", config={"loss": loss, "seed": 7}, **options,
        )  # fmt: skip
        for step in range(10):
            run.log({"train/loss": loss / (step + 1), "epoch": step}, step)
        assert run.finish().done
        return run

    return run_training


def test_the_script_is_what_users_run() -> None:
    script = Path(sys.executable).with_name("headrace")
    said = subprocess.run([script, "version"], capture_output=True, text=True, check=True).stdout
    assert said.startswith(f"headrace {headrace.__version__}, Python ")
    refused = subprocess.run(
        [script, "sync", "/no/such/place"], capture_output=True, text=True, check=False
    )
    assert refused.returncode == ExitCode.USAGE
    assert "/no/such/place" in refused.stderr


def test_runs_are_listed_shown_and_compared(
    call: Call, train: Callable[..., headrace.Run], experiment: str
) -> None:
    first, second = train(1.0, name="first", tags={"team": "a"}), train(4.0, name="second")
    text = call("runs", "ls", experiment, "-c", "metrics.train/loss", "-c", "params.loss").stdout
    assert "first" in text
    assert "0.4" in text
    assert "FINISHED" in text
    listed = lines(call("runs", "ls", experiment, "--json", "-f", 'metrics."train/loss" < 0.2'))
    assert [run["run_id"] for run in listed] == [first.id]
    ordered = lines(
        call("runs", "ls", experiment, "--json", "-o", 'metrics."train/loss" DESC', "-n", 1)
    )
    assert [run["name"] for run in ordered] == ["second"]
    shown = call("runs", "show", first.id[:14]).stdout
    for expected in (first.id, "train/loss", "team", "python.version", experiment):
        assert expected in shown
    assert lines(call("runs", "show", first.id, "--json"))[0]["params"]["seed"] == "7"
    compared = call("runs", "compare", first.id, second.id, "--differing").stdout
    assert "params.loss" in compared
    assert "params.seed" not in compared
    rows = lines(call("runs", "compare", first.id, second.id, "-m", "epoch", "--json"))
    assert [row["params.loss"] for row in rows] == ["1.0", "4.0"]
    assert "metrics.train/loss.last" not in rows[0]


def test_runs_are_tagged_renamed_deleted_and_restored(
    call: Call, train: Callable[..., headrace.Run], experiment: str
) -> None:
    run = train()
    call("runs", "tag", run.id, "headrace.protected=yes", "a=b=c")
    assert "runs tag RUN --delete" in call("runs", "delete", run.id, exit_code=1).stderr
    call("runs", "tag", run.id, "--delete", "headrace.protected")
    name = f"renamed {uuid.uuid4().hex[:6]}"
    call("runs", "rename", run.id, name)
    assert lines(call("runs", "show", name, "--json"))[0]["tags"] == {"a": "b=c"}
    assert lines(call("runs", "delete", name, "--json"))[0]["deleted_at"]
    assert call("runs", "ls", experiment).stdout == "no runs\n"
    assert name in call("runs", "ls", experiment, "--deleted").stdout
    call("runs", "restore", name)
    assert name in call("runs", "ls", experiment).stdout


def test_experiments_live_their_life(call: Call, experiment: str) -> None:
    call("experiments", "create", experiment, "--description", "why", "--tag", "owner=ada")
    assert "EXPERIMENT_EXISTS" in call("experiments", "create", experiment, exit_code=1).stderr
    call("experiments", "create", experiment, "--exist-ok")
    assert "owner" in call("experiments", "show", experiment).stdout
    (listed,) = lines(call("experiments", "ls", "--json", "-f", f"name = '{experiment}'"))
    renamed = lines(
        call("experiments", "rename", f"#{listed['experiment_id']}", experiment + "2", "--json")
    )
    assert renamed[0]["name"] == experiment + "2"
    call("experiments", "delete", experiment + "2")
    assert experiment in call("experiments", "ls", "--deleted").stdout
    call("experiments", "restore", experiment + "2")
    assert experiment + "2" in call("experiments", "ls").stdout


def test_metrics_are_shown_and_plotted(
    call: Call, train: Callable[..., headrace.Run], tmp_path: Path
) -> None:
    run = train(2.0)
    assert "train/loss" in call("metrics", "show", run.id).stdout
    (summary,) = lines(call("metrics", "show", run.id, "train/loss", "--json"))
    assert (summary["point_count"], summary["max_value"]) == (10, 2.0)
    (points,) = lines(call("metrics", "show", run.id, "train/loss", "--points", "--json"))
    assert points["value"][:2] == [2.0, 1.0]
    plot = call("metrics", "plot", run.id, "train/loss", "epoch").stdout
    assert "train/loss" in plot
    assert len(plot.splitlines()) >= 10
    for name, start in (("a.png", b"\x89PNG"), ("a.svg", b"<?xml")):
        call("metrics", "plot", run.id, "train/loss", "--output", tmp_path / name, "--log")
        assert (tmp_path / name).read_bytes().startswith(start)
    refused = call("metrics", "plot", run.id, "epoch", "-o", tmp_path / "a.gif", exit_code=2)
    assert "a.gif" in refused.stderr
    missing = call("metrics", "plot", run.id, "no such", exit_code=3).stderr
    assert "metrics show" in missing


def test_a_run_is_exported_and_imported(
    call: Call, train: Callable[..., headrace.Run], tmp_path: Path, experiment: str
) -> None:
    run = train()
    (said,) = lines(call("runs", "export", run.id, "--to", tmp_path / "out", "--json"))
    assert said["file"] == str(tmp_path / "out" / f"{run.id}.parquet")
    (copy,) = lines(call("runs", "import", said["file"], "--new-id", "--json"))
    assert (copy["experiment"], copy["params"]) == (experiment, {"loss": "1.0", "seed": "7"})
    exported = call("experiments", "export", experiment, "--to", tmp_path / "all").stdout
    assert len(exported.splitlines()) == 2
    (tmp_path / "notes.txt").write_text("no run")
    refused = call("runs", "import", tmp_path / "notes.txt", exit_code=1).stderr
    assert "notes.txt is no Parquet file" in refused
    assert "Traceback" not in refused


def test_tail_prints_what_is_committed_until_the_run_ends(
    call: Call, train: Callable[..., headrace.Run], shared_gateway: GatewayProcess, tmp_path: Path
) -> None:
    ended = train()
    text = call("tail", ended.id, "train/loss", "-n", 2).stdout.splitlines()
    assert [line.split("step ")[1] for line in text[:2]] == ["8  0.111111", "9  0.1"]
    assert text[2:] == [f"run {ended.id} is FINISHED"]
    run = headrace.init(
        address=shared_gateway.address, spool_dir=tmp_path / "spool", quiet=True, name="tailed"
    )
    run.log({"loss": 0.0}, 0)
    eventually(lambda: run.status().committed_records == 1, "the gateway knows the run")
    following = subprocess.Popen(
        [sys.executable, "-m", "headrace.cli", "tail", run.id, "--json"],
        env={**os.environ, "HEADRACE_ADDRESS": shared_gateway.address},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert following.stdout is not None
    assert json.loads(following.stdout.readline())["step"] == 0
    run.log({"loss": 1.0}, 1)
    assert json.loads(following.stdout.readline())["step"] == 1
    run.finish(state="failed")
    assert json.loads(following.stdout.readline())["state"] == "FAILED"
    assert following.wait(30) == 0
    following.stdout.close()


def test_tail_begins_with_the_last_points_of_all_attempts(
    call: Call, train: Callable[..., headrace.Run]
) -> None:
    first = train()
    second = train(run_id=first.id, attempt=2, resume_step=8)
    assert second.id == first.id
    text = call("tail", first.id, "epoch", "-n", 12).stdout.splitlines()
    steps = [int(line.split("step ")[1].split()[0]) for line in text[:-1]]
    assert steps == [*range(6, 8), *range(10)][-12:]


def test_tail_ends_when_it_cannot_ask_whether_the_run_goes_on(
    shared_gateway: GatewayProcess, tmp_path: Path
) -> None:
    run = headrace.init(address=shared_gateway.address, spool_dir=tmp_path / "spool", quiet=True)
    run.log({"loss": 0.0}, 0)
    eventually(lambda: run.status().committed_records == 1, "the gateway knows the run")
    run.finish()
    with Client(shared_gateway.address) as client:
        client._call(client._run_service.ReopenRun, ReopenRunRequest(run_id=run.id))
    with subprocess.Popen(
        [sys.executable, "-m", "headrace.cli", "tail", run.id],
        env={**os.environ, "HEADRACE_ADDRESS": shared_gateway.address},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as following:
        assert following.stdout is not None
        assert "loss" in following.stdout.readline()
        purge = "UPDATE runs SET deleted_at = now(), purged_at = now() WHERE run_id = $1"
        fetch(shared_gateway.dsn, purge, uuid.UUID(run.id))
        _, said = following.communicate(timeout=60)
    assert following.returncode == ExitCode.NOT_FOUND
    assert "RUN_PURGED" in said
    assert "Traceback" not in said


def test_status_tells_and_exits_by_whether_the_gateway_answers(call: Call) -> None:
    assert call("status").stdout.startswith("gateway 127.0.0.1:")
    (gateway,) = lines(call("status", "--json"))
    assert (gateway["answers"], gateway["text"]) == (True, "")
    nowhere = {"HEADRACE_ADDRESS": "127.0.0.1:1"}
    down = call("status", environment=nowhere, exit_code=5).stdout
    assert "gateway 127.0.0.1:1: does not answer\nno spools" in down
    (gateway,) = lines(call("status", "--json", environment=nowhere, exit_code=5))
    assert (gateway["gateway"], gateway["answers"]) == ("127.0.0.1:1", False)


def test_what_users_named_is_no_markup(
    call: Call, train: Callable[..., headrace.Run], tmp_path: Path
) -> None:
    first, second = train(name="[bold]a[/bold]"), train(name="[/nothing]")
    compared = call("runs", "compare", first.id, second.id).stdout
    assert "[bold]a[/bold]" in compared
    assert "[/nothing]" in compared
    spool = tmp_path / "[/nothing]"
    headrace.init(mode="offline", spool_dir=spool, quiet=True).finish()
    assert "waiting" in call("status", spool).stdout


def test_sync_does_not_fail_for_what_was_delivered_meanwhile(tmp_path: Path) -> None:
    for _ in range(2):
        run = headrace.init(mode="offline", spool_dir=tmp_path, quiet=True)
        run.log({"a": 1})
        run.finish()
    first, second = spool_files.spools(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-m", "headrace.cli", "sync", str(tmp_path), "--address", "127.0.0.1:1",
         "--timeout", "4", "--json"],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:  # fmt: skip

        def at_the_first() -> bool:
            try:
                opened = [path.readlink() for path in Path(f"/proc/{process.pid}/fd").iterdir()]
            except OSError:
                return False
            return any(path.is_relative_to(first) for path in opened)

        eventually(at_the_first, "a try to send the first")
        spool_files.remove_spool(second)  # as its own sender does at its end
        output, _ = process.communicate(timeout=60)
    reports = [json.loads(line) for line in output.splitlines()]
    assert [report["outcome"] for report in reports] == ["failed", "delivered"]
    assert process.returncode == 1


def test_login_replaces_a_file_that_cannot_be_read(
    call: Call, shared_gateway: GatewayProcess, tmp_path: Path
) -> None:
    nowhere = {"HEADRACE_ADDRESS": ""}
    (tmp_path / "login.json").write_text("{damaged")
    advised = call("experiments", "ls", environment=nowhere, exit_code=2).stderr
    assert "`headrace login ADDRESS` writes it anew" in advised
    call("login", environment=nowhere, exit_code=2)
    call("login", shared_gateway.address, "--token", "", environment=nowhere)
    assert "Default" in call("experiments", "ls", environment=nowhere).stdout


def test_login_stores_for_the_owner_alone_what_the_gateway_accepts(
    database_dsn: str, call: Call, tmp_path: Path
) -> None:
    with GatewayProcess(database_dsn, tmp_path, arguments=["--auth"]) as gateway:
        token = subprocess.run(
            [sys.executable, "-m", "gateway.cli", "token", "create", "ada", "--dsn", database_dsn],
            capture_output=True, text=True, check=True,
        ).stdout.strip()  # fmt: skip
        nowhere = {"HEADRACE_ADDRESS": ""}
        refused = call(
            "login", gateway.address, "--token", "hr_wrong", exit_code=4, environment=nowhere
        )
        assert "UNAUTHENTICATED" in refused.stderr
        assert not (tmp_path / "login.json").exists()
        call("login", gateway.address, "--token", "-", stdin=token + "\n", environment=nowhere)
        assert stat.S_IMODE((tmp_path / "login.json").stat().st_mode) == 0o600
        assert "Default" in call("experiments", "ls", environment=nowhere).stdout
        assert f"{gateway.address}: answers" in call("status", environment=nowhere).stdout
        # The token belongs to the stored address: another one never sees it.
        elsewhere = gateway.address.replace("127.0.0.1", "localhost")
        call("experiments", "ls", "--address", elsewhere, environment=nowhere, exit_code=4)
    down = call("experiments", "ls", environment=nowhere, exit_code=5).stderr
    assert gateway.address in down
    assert "headrace login" in down


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (["runs", "show", "0" * 32], ExitCode.NOT_FOUND, "headrace runs ls"),
        (["runs", "show", "no such name"], ExitCode.NOT_FOUND, "'no such name'"),
        (["runs", "ls", "no/such/experiment"], ExitCode.NOT_FOUND, "headrace experiments ls"),
        (["runs", "ls", "-f", "metrics.loss <"], ExitCode.USAGE, "FILTER_INVALID"),
        (["runs", "ls", "-c", "loss"], ExitCode.USAGE, "metrics.KEY"),
        (["runs", "tag", "0" * 32, "novalue"], ExitCode.USAGE, "KEY=VALUE"),
        (["runs", "ls", "--address", "nonsense"], ExitCode.USAGE, "host:port"),
        (["runs", "ls", "--no-such-flag"], ExitCode.USAGE, "--no-such-flag"),
        (["artifacts", "ls", "0" * 32], ExitCode.FAILED, "ARTIFACTS_DISABLED"),
        (["sync", "/no/such/place"], ExitCode.USAGE, "/no/such/place"),
        (["runs", "ls", "--address", "127.0.0.1:1"], ExitCode.UNREACHABLE, "127.0.0.1:1"),
    ],
)
def test_errors_name_the_resource_and_exit_as_documented(
    call: Call, arguments: list[str], code: ExitCode, named: str
) -> None:
    done = call(*arguments, exit_code=code)
    assert named in done.stderr
    assert "Traceback" not in done.stderr


def test_help_tells_the_exit_codes_and_completion_is_offered(call: Call) -> None:
    text = " ".join(call("--help").stdout.split())
    for code in ExitCode:
        assert f" {code.value} " in text
    assert "--install-completion" in text
