"""Flags that several commands have, each said once."""

from typing import Annotated

import typer

Address = Annotated[
    str | None,
    typer.Option(help="host:port or https://host:port; HEADRACE_ADDRESS, else the stored login."),
]
TlsCa = Annotated[str | None, typer.Option(help="PEM file of authorities; HEADRACE_TLS_CA.")]
Workspace = Annotated[
    str | None, typer.Option(help="HEADRACE_WORKSPACE; default: the token's, or `default`.")
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON, one object a line.")]
RunName = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's id, its first digits, or its name.")
]
RunNames = Annotated[
    list[str], typer.Argument(metavar="RUN", help="Ids, their first digits, or names.")
]
ExperimentName = Annotated[
    str, typer.Argument(metavar="EXPERIMENT", help="The experiment's name, or its id as #ID.")
]
Filter = Annotated[
    str, typer.Option("--filter", "-f", help="For example: metrics.loss < 0.3; docs/search.md.")
]
OrderBy = Annotated[
    list[str] | None, typer.Option("--order-by", "-o", help="For example: 'metrics.loss ASC'.")
]
Deleted = Annotated[bool, typer.Option("--deleted", help="Deleted ones instead.")]
