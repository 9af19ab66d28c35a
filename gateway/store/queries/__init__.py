"""Named SQL: `load("runs")` reads `runs.sql` beside this file.

A query begins with `-- name: lower_snake_case` and reaches to the next. Names
are checked by a test, bind parameters are PostgreSQL's `$1`, `$2`, ….
"""

import re
from importlib import resources

_NAME = re.compile(r"^-- name: ([a-z_0-9]+)\s*$", re.MULTILINE)


def load(noun: str) -> dict[str, str]:
    """Return the queries of one noun by name.

    Raises:
        ValueError: a name occurs twice, or text other than comments stands
            before the first name.
    """
    text = resources.files(__package__).joinpath(f"{noun}.sql").read_text(encoding="utf-8")
    head, *pieces = _NAME.split(text)
    if any(line and not line.startswith("--") for line in head.splitlines()):
        raise ValueError(f"{noun}.sql: text before the first `-- name:`")
    names, bodies = pieces[::2], pieces[1::2]
    if len(set(names)) != len(names):
        raise ValueError(f"{noun}.sql: a query name occurs twice")
    return {name: body.strip() for name, body in zip(names, bodies, strict=True)}
