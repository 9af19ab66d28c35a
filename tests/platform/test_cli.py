"""`headrace-gateway` says what it did, in JSON when asked, and exits as documented."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.cli import main
from tests.support.command import Done, run_command

DSN = "postgresql://nobody@127.0.0.1:1/none"  # nobody listens there
UNESCAPED_DSN = "postgresql://u:se/cret@db:5432/x"


def run(*arguments: str, environment: dict[str, str] | None = None) -> Done:
    return run_command(main, *arguments, environment=environment)


def test_the_script_is_what_users_run() -> None:
    script = Path(sys.executable).with_name("headrace-gateway")
    failed = subprocess.run([script, "serve"], capture_output=True, text=True, check=False)
    assert (failed.returncode, failed.stdout) == (2, "")
    assert "which database? set --dsn" in failed.stderr


def test_tokens_are_made_listed_and_revoked(database_dsn: str) -> None:
    environment = {"HEADRACE_GATEWAY_DSN": database_dsn}
    made = run(
        "token", "create", "[/alice]", "--read-only", "--expires-in", "90d", environment=environment
    )
    assert made.returncode == 0
    assert made.stdout.startswith("hr_")
    assert len(made.stdout.strip()) == 3 + 43  # 256 bits
    [listed] = json.loads(run("token", "ls", "--json", environment=environment).stdout)
    assert (listed["name"], listed["workspace"], listed["can_write"]) == (
        "[/alice]",
        "default",
        False,
    )
    assert listed["expires_at"] > listed["created_at"]
    revoked = run("token", "revoke", str(listed["token_id"]), environment=environment)
    assert revoked.returncode == 0
    table = run("token", "ls", environment=environment).stdout
    assert "revoked" in table
    assert "[/alice]" in table  # a name, no markup
    missing = run("token", "revoke", "999", environment=environment)
    assert (missing.returncode, missing.stderr) == (1, "there is no token 999\n")


def test_migrate_says_what_is_pending(database_dsn: str) -> None:
    done = run("migrate", "--check", "--json", "--dsn", database_dsn)
    assert (done.returncode, json.loads(done.stdout)) == (0, {"pending": []})
    assert "up to date" in run("migrate", "--dsn", database_dsn).stdout


def test_an_embedded_directory_serves_commands_without_a_gateway(tmp_path: Path) -> None:
    made = run("token", "create", "bob", "--embedded", str(tmp_path), "--json")
    assert json.loads(made.stdout)["token"].startswith("hr_")
    listed = run("token", "ls", "--embedded", str(tmp_path), "--json")
    assert [one["name"] for one in json.loads(listed.stdout)] == ["bob"]


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (("serve",), 2, "which database? set --dsn"),
        (("serve", "--set", "nonsense"), 2, "--set nonsense: expected NAME=VALUE"),
        (("serve", "--dsn", DSN, "--set", "a=1"), 2, "--set a=…: no such setting"),
        (("serve", "--dsn", DSN, "--workers", "many"), 2, "--workers"),
        (("serve", "--dsn", DSN, "--config", "absent.toml"), 2, "absent.toml"),
        (("token", "create", "x", "--dsn", DSN, "--expires-in", "soon"), 2, "--expires-in soon"),
        (("migrate", "--dsn", DSN), 1, "cannot be reached"),
        (("migrate", "--dsn", "not a dsn"), 2, "--dsn: expected postgresql://"),
        (("serve", "--embedded", "/dev/null/x"), 1, "cannot be used"),
        (("serve", "--dsn", UNESCAPED_DSN), 2, "--dsn: cannot be read"),
        (("migrate", "--dsn", "postgresql://u@/x?host=h&port=cret"), 2, "refuses the dsn"),
        (("migrate", "--dsn", f"{DSN}?sslmode=x"), 2, "`sslmode` parameter must be one of"),
        (
            ("serve", "--dsn", DSN, "--set", "s3_endpoint_url=minio:9000"),
            2,
            "s3_endpoint_url=…: expected http://host:port",
        ),
        (
            ("token", "create", "x", "--dsn", DSN, "--workspace", "Vision"),
            2,
            "--workspace Vision: expected 1 to 63 of a-z",
        ),
    ],
)
def test_mistakes_are_one_clear_line(arguments: tuple[str, ...], status: int, text: str) -> None:
    failed = run(*arguments)
    assert failed.returncode == status
    assert text in failed.stderr
    assert "Traceback" not in failed.stderr
    assert "cret" not in failed.stderr  # the end of a password


def test_help_shows_examples_and_exit_statuses() -> None:
    text = run("serve", "--help").stdout
    assert "headrace-gateway serve --embedded ./data" in text
    assert "127.0.0.1:7420" in text
    assert "Exit status" in text


def test_version_names_the_schema() -> None:
    assert set(json.loads(run("version", "--json").stdout)) == {"version", "schema"}
