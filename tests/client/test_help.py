"""The help of every command shows examples, and each is a command line that parses."""

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from headrace.cli import application

from gateway.cli import app


def commands(command: Any, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command below, by its words."""
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, *path, name)
    if not hasattr(command, "commands"):
        yield path, command


ALL = [
    *commands(typer.main.get_command(application), "headrace"),
    *commands(typer.main.get_command(app), "headrace-gateway"),
]


@pytest.mark.parametrize(("path", "command"), ALL, ids=[" ".join(path) for path, _ in ALL])
def test_examples_in_help_parse(
    path: tuple[str, ...], command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("checkpoints", "exported"):  # what the examples read
        Path(name).mkdir()
    Path("exported/0192ab.parquet").touch()
    paragraphs = [" ".join(part.split()) for part in (command.help or "").split("\n\n")]
    examples = [part for part in paragraphs if " ".join(path) in part.partition(" #")[0]]
    assert examples
    for example in examples:
        words = [
            word
            for text in shlex.split(example.rpartition("| ")[2], comments=True)
            for word in (map(str, Path().glob(text)) if "*" in text else [text])
        ]
        assert words[: len(path)] == list(path)
        command.make_context(" ".join(path), words[len(path) :])
