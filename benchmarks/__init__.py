"""Measurements of Headrace beside what PostgreSQL does without it.

`python -m benchmarks --help` is the way in. Each scenario is a function that
measures one round; `harness` interleaves the rounds of all scenarios, so that
a slow minute of the machine hits all of them; `results` keeps what was found.
"""
