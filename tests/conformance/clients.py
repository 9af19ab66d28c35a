"""Which clients there are, how their runners are built, and what they may lack.

Each folder `clients/<language>` says so itself in `conformance.json`:

    {"tools": ["go"],                                  programs that must be on PATH
     "runners": {"go": {
         "build": [["go", "build", "-o", "{build}/runner", "./cmd/conformance"]],
         "run": ["{build}/runner"],
         "optimized": {"build": …, "run": …},          the same for benchmarks, where it differs
         "lacks": {"window": "why"},                   features or cases, and why
         "silent": ["streams"]}}}                      fields it cannot know

`build` runs in the folder, `run` in the repository; `{build}` is the folder's build
directory, which git ignores, `{python}` this interpreter and `{root}` the repository.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
CLIENTS: Final = ROOT / "clients"
BUILD_DIRECTORY_NAME: Final = ".build"
BUILD_DEADLINE_S: Final = 1_800.0


class BuildError(Exception):
    """A runner cannot be built; the message ends with the last lines of the compiler."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """One row of the matrix.

    Attributes:
        name: unique.
        folder: where its commands run.
        tools: programs without which it is skipped, loudly.
        build, run: commands.
        lacks: feature or case → why it does not apply.
        silent: fields of reports and outcomes that the client does not know.
    """

    name: str
    folder: Path
    tools: tuple[str, ...]
    build: tuple[tuple[str, ...], ...]
    run: tuple[str, ...]
    lacks: Mapping[str, str] = field(default_factory=dict)
    silent: frozenset[str] = frozenset()

    @property
    def missing_tools(self) -> tuple[str, ...]:
        """The programs that this machine does not have."""
        return tuple(tool for tool in self.tools if shutil.which(tool) is None)

    def make(self) -> None:
        """Build the runner.

        Raises:
            BuildError: a command failed.
        """
        (self.folder / BUILD_DIRECTORY_NAME).mkdir(exist_ok=True)
        for command in self.build:
            done = subprocess.run(
                command,
                cwd=self.folder,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=BUILD_DEADLINE_S,
                check=False,
            )
            if done.returncode:
                tail = "\n".join(done.stdout.splitlines()[-40:])
                raise BuildError(f"{' '.join(command)} failed:\n{tail}")


def all_clients(*, optimized: bool = False) -> list[Client]:
    """Read every folder's conformance.json; with `optimized`, what is to be measured.

    Raises:
        FileNotFoundError: a client's folder has none; no client may stay outside.
    """
    return sorted(_read_all(optimized), key=lambda client: client.name)


def _read_all(optimized: bool) -> Iterator[Client]:
    for folder in sorted(CLIENTS.iterdir()):
        if not folder.is_dir() or folder.name == "scenarios":
            continue
        document = json.loads((folder / "conformance.json").read_text(encoding="utf-8"))
        for name, said in document["runners"].items():
            runner = said | said.get("optimized", {}) if optimized else said
            yield Client(
                name=name,
                folder=folder,
                tools=tuple(document["tools"]),
                build=tuple(_command(command, folder) for command in runner.get("build", [])),
                run=_command(runner["run"], folder),
                lacks=runner.get("lacks", {}),
                silent=frozenset(runner.get("silent", [])),
            )


def _command(words: list[Any], folder: Path) -> tuple[str, ...]:
    places = {
        "build": str(folder / BUILD_DIRECTORY_NAME),
        "python": sys.executable,
        "root": str(ROOT),
    }
    return tuple(str(word).format(**places) for word in words)
