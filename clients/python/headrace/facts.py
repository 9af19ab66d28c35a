"""What is known of a job without asking its user: who, where, which code, which environment.

Runs in the training process, inside `init`: reads a few small files and what
the interpreter knows already; starts no program, imports nothing, and fails
for nothing (what cannot be found is left out).
"""

import contextlib
import getpass
import os
import platform
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Final

from headrace.limits import KEY_CHARACTERS_MAX, PARAM_CHARACTERS_MAX

PACKAGES_MAX: Final = 300
"""Packages whose version is recorded."""

_PARENTS_MAX: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a run comes from; fields of CreateRunRequest, empty when unknown."""

    user_name: str = ""
    host: str = ""
    git_commit: str = ""
    entry_point: str = ""


UNKNOWN_ORIGIN: Final = Origin()


def find_origin(environ: Mapping[str, str]) -> Origin:
    """Who started this process, where, and from which commit (HEADRACE_GIT_COMMIT wins)."""
    user_name = host = ""
    with contextlib.suppress(Exception):  # no name for this uid, say
        user_name = getpass.getuser()
    with contextlib.suppress(OSError):
        host = socket.gethostname()
    script = _script()
    start = script.parent if script is not None else Path.cwd()
    return Origin(
        user_name=user_name[:KEY_CHARACTERS_MAX],
        host=host[:KEY_CHARACTERS_MAX],
        git_commit=environ.get("HEADRACE_GIT_COMMIT", "")[:KEY_CHARACTERS_MAX] or git_commit(start),
        entry_point=_entry_point()[:PARAM_CHARACTERS_MAX],
    )


def find_facts(environ: Mapping[str, str]) -> dict[str, str]:
    """Facts of the environment by name; packages are those imported so far."""
    system = os.uname()
    facts = {
        "python.version": platform.python_version(),
        "python.executable": sys.executable,
        "platform": f"{system.sysname} {system.release} {system.machine}",
        "cpu_count": str(os.cpu_count() or ""),
        "working_directory": _working_directory(),
        "slurm.job_id": environ.get("SLURM_JOB_ID", ""),
        "cuda.visible_devices": environ.get("CUDA_VISIBLE_DEVICES", ""),
    }
    facts |= {f"package.{name}": version for name, version in _packages().items()}
    return {name: text[:PARAM_CHARACTERS_MAX] for name, text in facts.items() if text}


def git_commit(start: Path) -> str:
    """The commit that is checked out in the repository around a directory; empty if unknown.

    Reads `.git` as git does: HEAD, loose and packed references, linked work
    trees and submodules.
    """
    with contextlib.suppress(OSError, ValueError, IndexError):
        directory = _git_directory(start.absolute())
        if directory is None:
            return ""
        head = (directory / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return _commit(head)
        return _resolve(directory, head.removeprefix("ref: "))
    return ""


def _git_directory(start: Path) -> Path | None:
    for parent in [start, *start.parents][:_PARENTS_MAX]:
        place = parent / ".git"
        if place.is_dir():
            return place
        if place.is_file():  # a linked work tree or a submodule
            return parent / place.read_text().strip().removeprefix("gitdir: ")
    return None


def _resolve(directory: Path, reference: str) -> str:
    places = [directory]
    with contextlib.suppress(OSError):  # a linked work tree: references are shared
        places.append(directory / (directory / "commondir").read_text().strip())
    for place in places:
        with contextlib.suppress(OSError):
            return _commit((place / reference).read_text().strip())
    for line in (places[-1] / "packed-refs").read_text().splitlines():
        if line.endswith(f" {reference}"):
            return _commit(line.split()[0])
    return ""


def _commit(text: str) -> str:
    int(text, 16)  # ValueError: no commit, but something that this does not know
    return text


def _packages() -> dict[str, str]:
    found = {}
    for name, module in sorted(sys.modules.items()):
        if "." in name or name.startswith("_") or name in sys.stdlib_module_names:
            continue
        version = getattr(module, "__dict__", {}).get("__version__")
        if isinstance(version, str):
            found[name] = version
    return dict(list(found.items())[:PACKAGES_MAX])


def _script() -> Path | None:
    name: str | None = getattr(sys.modules.get("__main__"), "__file__", None)
    return Path(name).absolute() if name else None


def _entry_point() -> str:
    main = sys.modules.get("__main__")
    spec: ModuleSpec | None = getattr(main, "__spec__", None)
    if spec is not None and spec.name:
        return f"-m {spec.name.removesuffix('.__main__')}"
    script = _script()
    return script.name if script is not None else ""


def _working_directory() -> str:
    try:
        return str(Path.cwd())
    except OSError:
        return ""
