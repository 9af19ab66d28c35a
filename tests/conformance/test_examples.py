"""What the pages show works: the stub examples of docs/clients.md, the READMEs' first steps."""

import functools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conformance.clients import CLIENTS, ROOT, Client, all_clients
from tests.support.gateway_process import GatewayProcess

PAGE = ROOT / "docs" / "clients.md"
LINES_MAX = 39
STORED = "headrace_points_accepted_total"
EXAMPLES = {
    "python": (
        CLIENTS / "python" / "examples" / "stub_stream.py",
        [sys.executable, "examples/stub_stream.py"],
    ),
    "go": (
        CLIENTS / "go" / "examples" / "stubs" / "main.go",
        ["go", "run", "./examples/stubs"],
    ),
    "rust": (
        CLIENTS / "rust" / "examples" / "stub_stream.rs",
        [
            "cargo",
            "run",
            "-q",
            "--locked",
            "--target-dir",
            ".build/target",
            "--example",
            "stub_stream",
            "--",
        ],
    ),
    "typescript": (
        CLIENTS / "typescript" / "examples" / "stub_stream.ts",
        ["npm", "run", "--silent", "stub-stream", "--"],
    ),
    "cpp": (
        CLIENTS / "cpp" / "examples" / "stub_stream.cpp",
        [".build/stub_stream"],
    ),
    "java": (
        CLIENTS / "java" / "examples" / "StubStream.java",
        ["java", "-cp", "target/classes:target/dependency/*", "examples/StubStream.java"],
    ),
}


@functools.cache
def built(language: str) -> Client:
    """The client, made once for all tests; skips where tools are missing."""
    client = next(client for client in all_clients() if client.name == language)
    if client.missing_tools:
        pytest.skip(f"this machine has no {', '.join(client.missing_tools)}")
    client.make()
    return client


@pytest.mark.parametrize("language", EXAMPLES)
def test_the_page_shows_the_file(language: str) -> None:
    file, _ = EXAMPLES[language]
    text = file.read_text(encoding="utf-8").rstrip()
    assert len(text.splitlines()) <= LINES_MAX
    assert f"```{language}\n{text}\n```" in PAGE.read_text(encoding="utf-8")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("language", EXAMPLES)
def test_bare_stubs_store_points(language: str, shared_gateway: GatewayProcess) -> None:
    _, command = EXAMPLES[language]
    client = built(language)
    done = subprocess.run(
        [*command, shared_gateway.address],
        cwd=client.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    run_id, points = done.stdout.split()
    assert len(run_id) == 32
    assert points == "100"


def test_every_example_of_a_client_is_listed() -> None:
    found = {
        path.resolve() for path in Path(CLIENTS).glob("*/examples/**/*stub*") if path.is_file()
    }
    found |= {path for path in CLIENTS.glob("*/examples/stubs/*") if path.is_file()}
    assert {file for file, _ in EXAMPLES.values()} >= found


@pytest.mark.timeout(600)
@pytest.mark.parametrize("language", [name for name in EXAMPLES if name != "python"])
def test_a_newcomer_stores_points(
    language: str, shared_gateway: GatewayProcess, tmp_path: Path
) -> None:
    client = built(language)
    readme = (client.folder / "README.md").read_text(encoding="utf-8")
    files = re.findall(
        r"`(\S+)`(?: in a folder of its own)?:\n\n```\w+\n(.*?)```", readme, re.DOTALL
    )
    for name, code in files:
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(code.replace("127.0.0.1:7420", shared_gateway.address), encoding="utf-8")
    [commands] = re.findall(r"```sh\n(.*?)```", readme, re.DOTALL)
    commands = commands.replace("<checkout>", str(ROOT)).replace(
        "~/.local", str(tmp_path / "local")
    )
    environment = dict(os.environ)
    # What the checks have compiled or installed already is not made again.
    build = client.folder / ".build"
    if language == "cpp":
        commands = commands.replace(" -D HEADRACE_DEVELOPER=OFF", "")
        commands = re.sub(r"(-B|--build|--install) headrace\b", rf"\1 {build}", commands)
    if language == "rust":
        environment["CARGO_TARGET_DIR"] = str(build / "target")
        shutil.copy(client.folder / "Cargo.lock", tmp_path)
    if language == "typescript":
        commands = commands.replace(f"npm ci --prefix {client.folder}\n", "")
    before = shared_gateway.metrics()[STORED]
    subprocess.run(
        ["bash", "-e", "-c", commands], cwd=tmp_path, env=environment, check=True, timeout=500
    )
    assert shared_gateway.metrics()[STORED] - before == 2_000
