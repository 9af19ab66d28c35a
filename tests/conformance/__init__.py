"""The conformance harness: every client replays every scenario against a live gateway.

`python -m tests.conformance` builds the runners whose toolchains are there, plays
the faults of each case, checks what was stored, acknowledged and reported, and
prints the matrix. clients/scenarios/README.md is its specification.
"""
