"""A command line run in this process: what it prints and what it ends with.

A process of its own takes a second to import everything; a few tests of each command
start one, to see that the installed script is this one.
"""

import contextlib
import io
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from unittest import mock


@dataclass(frozen=True, slots=True)
class Done:
    """A command that ended."""

    returncode: int
    stdout: str
    stderr: str


def run_command(
    main: Callable[[], None],
    *arguments: object,
    environment: Mapping[str, str] | None = None,
    stdin: str = "",
    directory: Path | None = None,
) -> Done:
    """Run a console script's function as its script would.

    Args:
        main: the function.
        arguments: what follows the script's name.
        environment: further variables; inherited HEADRACE_* ones are removed.
        stdin: what it reads.
        directory: where it runs, if not here.

    Raises:
        Exception: whatever it let through; as a process it would show a traceback.
    """
    variables = {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")}
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.dict(os.environ, {**variables, **(environment or {})}, clear=True),
        mock.patch.object(sys, "argv", ["command", *map(str, arguments)]),
        mock.patch.object(sys, "stdin", io.StringIO(stdin)),
        contextlib.chdir(directory or Path.cwd()),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return Done(code, out.getvalue(), err.getvalue())
