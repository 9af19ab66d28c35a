"""The keys of system metrics: a fixed set, so that a resume step can leave them alone.

Their step is another axis, seconds since the run began, so a job that resumes
names them as exempt (see OpenWriter.resume_exempt_keys).
"""

from typing import Final

GPUS_MAX: Final = 16
"""Of one machine."""

MACHINE_KEYS: Final = (
    "system/cpu_percent",
    "system/memory_used_bytes",
    "system/memory_percent",
    "system/disk_used_percent",
    "system/disk_read_bytes_per_s",
    "system/disk_written_bytes_per_s",
    "system/network_received_bytes_per_s",
    "system/network_sent_bytes_per_s",
    "system/process/cpu_percent",
    "system/process/memory_bytes",
)

GPU_NAMES: Final = (
    "utilization_percent",
    "memory_used_bytes",
    "memory_percent",
    "temperature_celsius",
    "power_watts",
)


def gpu_key(index: int, name: str) -> str:
    """The key of one GPU's value."""
    return f"system/gpu/{index}/{name}"


SYSTEM_KEYS: Final = MACHINE_KEYS + tuple(
    gpu_key(index, name) for index in range(GPUS_MAX) for name in GPU_NAMES
)
