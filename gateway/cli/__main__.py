"""`python -m gateway.cli` is `headrace-gateway`."""

from gateway.cli import main

main()
