"""`init`, and the run that module-level `log` and `finish` mean: the newest one."""

import atexit
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, SupportsIndex

from headrace.environment import detect_job
from headrace.errors import ConfigurationError
from headrace.identifiers import new_identifier
from headrace.limits import NAME_CHARACTERS_MAX, RESUME_EXEMPT_KEYS_MAX, STEP_MAX, STEP_MIN
from headrace.run import Run
from headrace.scalars import key_fault
from headrace.settings import Mode, load_settings
from headrace.spool_files import WriterIdentity
from headrace.status import RunStatus

StepPolicy = Literal["last", "first", "all"]
LatePolicy = Literal["accept", "reject"]

_STEP_POLICIES: Final = {"last": 1, "first": 2, "all": 3}
_LATE_POLICIES: Final = {"accept": 1, "reject": 2}

_logger: Final = logging.getLogger("headrace")


class _Process:
    """What this process has started. One instance."""

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self.derived_ids = 0
        self.warned = False

    def at_exit(self) -> None:
        """Finishes what the program left open; `failed` when an exception ended it."""
        failed = getattr(sys, "last_value", None) is not None
        for run in self.runs:
            try:
                run.finish(state="failed" if failed else "finished")
            except Exception:
                _logger.warning("headrace: finishing at exit failed", exc_info=True)


_process: Final = _Process()
atexit.register(_process.at_exit)


def init(
    run_id: str | None = None,
    *,
    experiment: str | None = None,
    name: str | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    attempt: int | None = None,
    resume_step: int | None = None,
    resume_exempt_keys: Sequence[str] = (),
    step_policy: StepPolicy = "last",
    late_policy: LatePolicy = "accept",
    address: str | None = None,
    token: str | None = None,
    tls_ca: str | None = None,
    spool_dir: str | os.PathLike[str] | None = None,
    spool_bytes_max: int | None = None,
    mode: Mode | None = None,
    strict: bool | None = None,
    finish_timeout_s: float | None = None,
    quiet: bool | None = None,
) -> Run:
    """Starts this process's part of a run. Never waits for the gateway.

    Everything left out comes from `HEADRACE_*` variables, then from torchrun's
    or Slurm's (see environment.py), then from defaults (see settings.py).

    Args:
        run_id: 32 hex digits. All ranks and all attempts of a job share it.
        experiment: default `Default` (HEADRACE_EXPERIMENT).
        name: for people; default: the first digits of the id (HEADRACE_NAME).
        rank, world_size: this process within its job, from 0.
        attempt: which start of the job this is, from 1.
        resume_step: the first step computed anew after a restart: points of
            earlier attempts from there on are hidden from reads. All ranks
            say the same.
        resume_exempt_keys: keys that a resume step does not hide (their step
            is another axis).
        step_policy: which of several points at one step a read returns.
        late_policy: what happens to steps at or below the greatest one.
        address: `host:port`, or `https://host:port`.
        token: bearer token.
        tls_ca: PEM file of authorities to trust.
        spool_dir: where spools are kept; on a volume that survives, if the
            container does not.
        spool_bytes_max: bytes that may wait in this process's spool.
        mode: `online`, `offline` (only the spool; `headrace sync` sends it) or
            `disabled`.
        strict: log calls raise what they otherwise warn about once.
        finish_timeout_s: how long `finish` and exit wait by default.
        quiet: no lines on standard error, warnings excepted.

    Raises:
        ConfigurationError: an argument, a variable, or ranks that cannot agree
            on a run id. A gateway or a disk that is not there raises nothing.
    """
    settings = load_settings(
        address=address,
        token=token,
        tls_ca=tls_ca,
        spool_dir=spool_dir,
        spool_bytes_max=spool_bytes_max,
        mode=mode,
        strict=strict,
        finish_timeout_s=finish_timeout_s,
        quiet=quiet,
    )
    job = detect_job(
        os.environ,
        derived_before=_process.derived_ids,
        run_id=run_id,
        rank=rank,
        world_size=world_size,
        attempt=attempt,
        resume_step=resume_step,
    )
    _process.derived_ids += job.derived
    if job.resume_step is not None and not STEP_MIN <= job.resume_step <= STEP_MAX:
        raise ConfigurationError(f"resume_step is {job.resume_step}, outside [-2^62, 2^62)")
    if len(resume_exempt_keys) > RESUME_EXEMPT_KEYS_MAX:
        raise ConfigurationError(
            f"{len(resume_exempt_keys)} resume_exempt_keys; the limit is {RESUME_EXEMPT_KEYS_MAX}"
        )
    for key in resume_exempt_keys:
        if (fault := key_fault(key)) is not None:
            raise ConfigurationError(f"resume_exempt_keys: {fault}")
    identity = WriterIdentity(
        run_id=job.run_id,
        writer_id=new_identifier(),
        incarnation=new_identifier(),
        experiment=_name(experiment, "EXPERIMENT"),
        name=_name(name, "NAME"),
        step_policy=_choice(step_policy, _STEP_POLICIES, "step_policy"),
        late_policy=_choice(late_policy, _LATE_POLICIES, "late_policy"),
        rank=job.rank,
        attempt=job.attempt,
        resume_step=job.resume_step,
        resume_exempt_keys=tuple(resume_exempt_keys),
        ends_run=job.rank == 0,
        trainer_pid=os.getpid(),
        created_us=time.time_ns() // 1_000,
    )
    run = Run(identity, settings, world_size=job.world_size)
    _process.runs.append(run)
    return run


def log(metrics: Mapping[str, Any], step: SupportsIndex | None = None) -> None:
    """`Run.log` of the newest run. Without one, warns once and does nothing."""
    if _process.runs:
        _process.runs[-1].log(metrics, step)
    elif not _process.warned:
        _process.warned = True
        _logger.warning("headrace: log was called before init; nothing is recorded (said once)")


def finish(timeout: float | None = None, *, state: str = "finished") -> RunStatus | None:
    """`Run.finish` of the newest run, which the one before it then becomes again."""
    if not _process.runs:
        return None
    return _process.runs.pop().finish(timeout, state=state)


def _name(value: str | None, variable: str) -> str:
    text = value if value is not None else os.environ.get(f"HEADRACE_{variable}", "")
    if len(text) > NAME_CHARACTERS_MAX:
        raise ConfigurationError(
            f"{variable.lower()} has {len(text)} characters; the limit is {NAME_CHARACTERS_MAX}"
        )
    return text


def _choice(value: str, choices: Mapping[str, int], name: str) -> int:
    if value.lower() not in choices:
        raise ConfigurationError(f"{name} is {value!r}; it must be one of {sorted(choices)}")
    return choices[value.lower()]
