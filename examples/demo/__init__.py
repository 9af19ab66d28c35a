"""Headrace on real training jobs, with faults, in under two minutes.

`python -m examples.demo` trains 56 small classifiers, each job in processes of
its own, through one gateway with an embedded PostgreSQL. Meanwhile the network
is cut, a trainer is killed and restarted from its checkpoint, and the gateway
is killed with SIGKILL. At the end every point is counted.
"""
