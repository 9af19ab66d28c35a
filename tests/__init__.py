"""Claims about Headrace, checked against real servers on real sockets."""
