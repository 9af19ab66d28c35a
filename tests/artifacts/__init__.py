"""Artifacts: transfers, faults, memory, logging, the doctor."""
