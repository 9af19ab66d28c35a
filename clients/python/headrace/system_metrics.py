"""What the machine does while it trains: CPU, memory, disk, network, NVIDIA GPUs. Runs in senders.

Nothing here fails: what cannot be measured is left out.
"""

import contextlib
import time
from pathlib import Path
from typing import Any, Final

import psutil

from headrace.system_keys import GPUS_MAX, gpu_key

_MILLIWATTS: Final = 1_000


class SystemSampler:
    """Samples the machine and the trainer's process."""

    def __init__(self, trainer_pid: int, directory: Path) -> None:
        """Prepare.

        Args:
            trainer_pid: whose CPU and memory are told, without its children.
            directory: on the disk whose fullness is told.
        """
        self._directory = directory
        self._trainer: psutil.Process | None = None
        with contextlib.suppress(Exception):
            trainer = psutil.Process(trainer_pid)
            trainer.cpu_percent()  # the first answer is of no time at all
            self._trainer = trainer
        with contextlib.suppress(Exception):
            psutil.cpu_percent()
        self._gpus = _Gpus()
        self._rates = _Rates()

    def sample(self) -> dict[str, float]:
        """Values by key; rates and percentages are of the time since the last sample."""
        values: dict[str, float] = {}
        with contextlib.suppress(Exception):  # a container may hide any of them
            values["system/cpu_percent"] = psutil.cpu_percent()
        with contextlib.suppress(Exception):
            memory = psutil.virtual_memory()
            values["system/memory_used_bytes"] = float(memory.total - memory.available)
            values["system/memory_percent"] = memory.percent
        with contextlib.suppress(Exception):
            disk = psutil.disk_usage(str(self._directory))
            values["system/disk_used_percent"] = disk.percent
        values |= self._rates.sample()
        if self._trainer is not None:
            with contextlib.suppress(Exception):
                values["system/process/cpu_percent"] = self._trainer.cpu_percent()
                values["system/process/memory_bytes"] = float(self._trainer.memory_info().rss)
        return values | self._gpus.sample()

    def close(self) -> None:
        """Let go of the GPUs' library."""
        self._gpus.close()


class _Rates:
    """Bytes a second, from counters that only grow."""

    def __init__(self) -> None:
        self._before = self._counters()
        self._at = time.monotonic()

    def sample(self) -> dict[str, float]:
        counters, now = self._counters(), time.monotonic()
        elapsed_s = max(now - self._at, 1e-3)
        rates = {
            key: max(0.0, (count - self._before[key]) / elapsed_s)
            for key, count in counters.items()
            if key in self._before
        }
        self._before, self._at = counters, now
        return rates

    @staticmethod
    def _counters() -> dict[str, int]:
        counters = {}
        with contextlib.suppress(Exception):  # a container may hide them
            disk = psutil.disk_io_counters()
            if disk is not None:
                counters["system/disk_read_bytes_per_s"] = disk.read_bytes
                counters["system/disk_written_bytes_per_s"] = disk.write_bytes
        with contextlib.suppress(Exception):
            network = psutil.net_io_counters()
            counters["system/network_received_bytes_per_s"] = network.bytes_recv
            counters["system/network_sent_bytes_per_s"] = network.bytes_sent
        return counters


class _Gpus:
    """NVIDIA GPUs by NVIDIA's own library (`headrace[gpu]`); none where it is not there."""

    def __init__(self) -> None:
        self._library: Any = None
        self._handles: list[Any] = []
        try:
            import pynvml  # noqa: PLC0415 - an extra

            pynvml.nvmlInit()
            self._library = pynvml
            count = min(pynvml.nvmlDeviceGetCount(), GPUS_MAX)
            self._handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
        except Exception:  # noqa: S110 - no library, no driver, no GPU: nothing to tell
            pass

    def sample(self) -> dict[str, float]:
        values: dict[str, float] = {}
        for index, handle in enumerate(self._handles):
            for name, value in self._values(handle).items():
                values[gpu_key(index, name)] = value
        return values

    def _values(self, handle: Any) -> dict[str, float]:
        library = self._library
        values: dict[str, float] = {}
        with contextlib.suppress(Exception):  # a GPU may not support one of them
            values["utilization_percent"] = float(library.nvmlDeviceGetUtilizationRates(handle).gpu)
        with contextlib.suppress(Exception):
            memory = library.nvmlDeviceGetMemoryInfo(handle)
            values["memory_used_bytes"] = float(memory.used)
            values["memory_percent"] = 100.0 * memory.used / memory.total
        with contextlib.suppress(Exception):
            sensor = library.NVML_TEMPERATURE_GPU
            values["temperature_celsius"] = float(library.nvmlDeviceGetTemperature(handle, sensor))
        with contextlib.suppress(Exception):
            values["power_watts"] = library.nvmlDeviceGetPowerUsage(handle) / _MILLIWATTS
        return values

    def close(self) -> None:
        if self._library is not None:
            with contextlib.suppress(Exception):
                self._library.nvmlShutdown()
