"""Headrace: a gRPC tracking gateway for machine-learning training."""
