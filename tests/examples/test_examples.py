"""The examples do what they say, as a user starts them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import headrace
import pytest

from tests.support.gateway_process import GatewayProcess

EXAMPLES = Path(__file__).parents[2] / "examples"


def run_example(
    gateway: GatewayProcess, directory: Path, name: str, *arguments: object, without: str = ""
) -> str:
    """What an example prints; `without` is a library it shall not find."""
    code = (
        f"import runpy, sys; sys.modules[{without!r}] = None; "
        f"sys.argv = {[name, *map(str, arguments)]!r}; "
        f"runpy.run_path({str(EXAMPLES / name)!r}, run_name='__main__')"
    )
    command = ["-c", code] if without else [str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(
        [sys.executable, *command],
        env={
            **os.environ,
            "HEADRACE_ADDRESS": gateway.address,
            "HEADRACE_SPOOL_DIR": str(directory / "spool"),
        },
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_quickstart_has_twenty_lines_and_finds_its_run(
    shared_gateway: GatewayProcess, tmp_path: Path
) -> None:
    text = (EXAMPLES / "quickstart.py").read_text()
    assert len(text.splitlines()) <= 20
    for runs in (1, 2):
        printed = run_example(shared_gateway, tmp_path, "quickstart.py").splitlines()
        assert len(printed) == runs
        assert re.fullmatch(r"\S+ FINISHED slope 2\.99\d\d|\S+ FINISHED slope 3\.0000", printed[0])


@pytest.mark.parametrize("library", ["torch", "numpy"])
def test_the_training_script_learns_and_goes_on_from_its_checkpoint(
    shared_gateway: GatewayProcess, tmp_path: Path, library: str
) -> None:
    if library == "torch":
        pytest.importorskip("torch")
    checkpoint = tmp_path / "moons.json"
    without = "torch" if library == "numpy" else ""
    for total in (300, 600):
        printed = run_example(
            shared_gateway, tmp_path, "train_torch.py", "--checkpoint", checkpoint, without=without
        )
        assert ("PyTorch is not installed" in printed) == (library == "numpy")
        assert f"after {total} steps" in printed
    run_id = json.loads(checkpoint.read_text())["run"]["run_id"]
    with headrace.Client(shared_gateway.address) as client:
        run = client.run(run_id)
        loss = client.read(run_id, ["loss"])["loss"]
    assert loss.step.tolist() == list(range(600))
    assert loss.value[-1] < loss.value[0] / 2
    assert [attempt.resume_step for attempt in run.attempts] == [None, 300]
    assert (run.state, run.tags["library"]) == ("FINISHED", library)
    assert float(run.summary["accuracy"]) > 0.85
