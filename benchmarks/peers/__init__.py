"""What users would pick instead, measured on the same machine: `make peers` installs it.

Each peer is started by the harness on loopback, with the defaults its own
documentation gives, on the same PostgreSQL where it uses one, and is ended
with the measurement. Requests are built before the clock starts and sent by a
client that does no more than send them, so that a peer's figure is the
server's and not that of its client library.
"""
