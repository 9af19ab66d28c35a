"""Tests of the Python client's write side."""
