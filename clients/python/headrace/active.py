"""`init`, and the run that module-level `log` and `finish` mean: the newest one."""

import atexit
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, SupportsIndex

from headrace.environment import Job, detect_job, is_first_of_machine
from headrace.errors import ConfigurationError
from headrace.facts import UNKNOWN_ORIGIN, find_facts, find_origin
from headrace.identifiers import is_identifier, new_identifier
from headrace.limits import NAME_CHARACTERS_MAX, RESUME_EXEMPT_KEYS_MAX, STEP_MAX, STEP_MIN
from headrace.run import Run
from headrace.scalars import key_fault, name_fault
from headrace.settings import Mode, Settings, load_settings
from headrace.spool_files import WriterIdentity
from headrace.status import RunStatus
from headrace.system_keys import SYSTEM_KEYS

StepPolicy = Literal["last", "first", "all"]
LatePolicy = Literal["accept", "reject"]

_STEP_POLICIES: Final = {"last": 1, "first": 2, "all": 3}
_LATE_POLICIES: Final = {"accept": 1, "reject": 2}

GROUP_TAG: Final = "headrace.group"
"""The tag that `init(group=)` sets: runs of one sweep, one ensemble, one cross-validation."""

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
    config: Mapping[str, Any] | None = None,
    tags: Mapping[str, Any] | Sequence[str] = (),
    notes: str = "",
    group: str | None = None,
    parent: "str | Run | None" = None,
    resume: Mapping[str, Any] | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    attempt: int | None = None,
    resume_step: int | None = None,
    resume_exempt_keys: Sequence[str] = (),
    step_policy: StepPolicy | None = None,
    late_policy: LatePolicy | None = None,
    address: str | None = None,
    token: str | None = None,
    tls_ca: str | None = None,
    workspace: str | None = None,
    spool_dir: str | os.PathLike[str] | None = None,
    spool_bytes_max: int | None = None,
    mode: Mode | None = None,
    strict: bool | None = None,
    finish_timeout_s: float | None = None,
    quiet: bool | None = None,
    system_metrics: bool | None = None,
    system_metrics_interval_s: float | None = None,
    console: bool | None = None,
) -> Run:
    """Starts this process's part of a run. Never waits for the gateway.

    Everything left out comes from `HEADRACE_*` variables, then from torchrun's
    or Slurm's (see environment.py), then from defaults (see settings.py).

    Args:
        run_id: 32 hex digits. All ranks and all attempts of a job share it.
        experiment: default `Default` (HEADRACE_EXPERIMENT).
        name: for people; default: a readable one made from the id (HEADRACE_NAME).
        config: the run's params; `run.config` takes more later.
        tags: by key, or names alone, whose values are then empty.
        notes: free text.
        group: what belongs together, kept as the tag `headrace.group`
            (HEADRACE_GROUP).
        parent: the run this one is nested in, or its id (HEADRACE_PARENT).
        resume: what `run.resume_point(step)` returned and the checkpoint kept:
            continues that run as its next attempt. The same as its `run_id`,
            `experiment`, policies, `attempt` and `resume_step` one by one.
        rank, world_size: this process within its job, from 0.
        attempt: which start of the job this is, from 1.
        resume_step: the first step computed anew after a restart: points of
            earlier attempts from there on are hidden from reads. All ranks
            say the same.
        resume_exempt_keys: keys that a resume step does not hide (their step
            is another axis).
        step_policy: which of several points at one step a read returns; default `last`.
        late_policy: what happens to steps at or below the greatest one; default `accept`.
        address: `host:port`, or `https://host:port`.
        token: bearer token.
        tls_ca: PEM file of authorities to trust.
        workspace: default: the token's, or `default` (HEADRACE_WORKSPACE).
        spool_dir: where spools are kept; on a volume that survives, if the
            container does not.
        spool_bytes_max: bytes that may wait in this process's spool.
        mode: `online`, `offline` (only the spool; `headrace sync` sends it) or
            `disabled`.
        strict: log calls raise what they otherwise warn about once.
        finish_timeout_s: how long `finish` and exit wait by default.
        quiet: no lines on standard error, warnings excepted.
        system_metrics: whether CPU, memory, disk, network and NVIDIA GPUs are
            sampled by the sender, under `system/`; on by default
            (HEADRACE_SYSTEM_METRICS).
        system_metrics_interval_s: how often; 15 by default.
        console: whether what this process writes to standard output and error
            is also kept, as the artifact `console/…` (HEADRACE_CONSOLE).

    Raises:
        ConfigurationError: an argument, a variable, or ranks that cannot agree
            on a run id. A gateway or a disk that is not there raises nothing.
    """
    settings = load_settings(
        address=address,
        token=token,
        tls_ca=tls_ca,
        workspace=workspace,
        spool_dir=spool_dir,
        spool_bytes_max=spool_bytes_max,
        mode=mode,
        strict=strict,
        finish_timeout_s=finish_timeout_s,
        quiet=quiet,
        system_metrics=system_metrics,
        system_metrics_interval_s=system_metrics_interval_s,
        console=console,
    )
    resumed = _resumed(resume)
    job = detect_job(
        os.environ,
        derived_before=_process.derived_ids,
        run_id=run_id or resumed.get("run_id"),
        rank=rank,
        world_size=world_size,
        attempt=resumed.get("attempt") if attempt is None else attempt,
        resume_step=resumed.get("resume_step") if resume_step is None else resume_step,
    )
    _process.derived_ids += job.derived
    speaks = job.rank == 0
    identity = WriterIdentity(
        run_id=job.run_id,
        writer_id=new_identifier(),
        incarnation=new_identifier(),
        experiment=_name(experiment or resumed.get("experiment"), "EXPERIMENT"),
        name=_name(name, "NAME"),
        step_policy=_choice(
            step_policy, _STEP_POLICIES, "step_policy", resumed.get("step_policy", 1)
        ),
        late_policy=_choice(
            late_policy, _LATE_POLICIES, "late_policy", resumed.get("late_policy", 1)
        ),
        rank=job.rank,
        attempt=job.attempt,
        resume_step=job.resume_step,
        resume_exempt_keys=_exempt_keys(resume_exempt_keys, job),
        parent_run_id=_parent(parent),
        origin=find_origin(os.environ) if speaks else UNKNOWN_ORIGIN,
        facts=find_facts(os.environ) if speaks else {},
        system_metrics_interval_s=_sampling_interval_s(settings),
        ends_run=speaks,
        trainer_pid=os.getpid(),
        created_us=time.time_ns() // 1_000,
    )
    run = Run(identity, settings, world_size=job.world_size)
    _process.runs.append(run)
    if config:
        run.config.update(config)
    described = dict(tags) if isinstance(tags, Mapping) else dict.fromkeys(tags, "")
    if group := _name(group, "GROUP"):
        described[GROUP_TAG] = group
    if described:
        run.set_tags(described)
    if notes:
        run.set_notes(notes)
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
    if (fault := name_fault(text)) is not None:  # no gateway would ever take the run
        raise ConfigurationError(f"{variable.lower()} {text[:80]!r} {fault}")
    return text


def _resumed(point: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a resume point says, and the next attempt."""
    if point is None:
        return {}
    try:
        return {
            "run_id": str(point["run_id"]),
            "experiment": str(point["experiment"]),
            "step_policy": int(point["step_policy"]),
            "late_policy": int(point["late_policy"]),
            "attempt": int(point["attempt"]) + 1,
            "resume_step": int(point["resume_step"]),
        }
    except (KeyError, TypeError, ValueError):
        raise ConfigurationError(
            f"resume is {point!r}; it must be what run.resume_point(step) returned"
        ) from None


def _parent(parent: "str | Run | None") -> str:
    given = parent.id if isinstance(parent, Run) else parent
    text = given if given is not None else os.environ.get("HEADRACE_PARENT", "")
    identifier = text.replace("-", "").lower()
    if identifier and not is_identifier(identifier):
        raise ConfigurationError(
            f"parent (HEADRACE_PARENT) is {text!r}; it must be a run or 32 hex digits"
        )
    return identifier


def _exempt_keys(given: Sequence[str], job: Job) -> tuple[str, ...]:
    """The keys that the resume step of this attempt does not hide."""
    if job.resume_step is not None and not STEP_MIN <= job.resume_step <= STEP_MAX:
        raise ConfigurationError(f"resume_step is {job.resume_step}, outside [-2^62, 2^62)")
    limit = RESUME_EXEMPT_KEYS_MAX - len(SYSTEM_KEYS)
    if len(given) > limit:
        raise ConfigurationError(f"{len(given)} resume_exempt_keys; the limit is {limit}")
    for key in given:
        if (fault := key_fault(key)) is not None:
            raise ConfigurationError(f"resume_exempt_keys: {fault}")
    return tuple(given) if job.resume_step is None else (*given, *SYSTEM_KEYS)


def _sampling_interval_s(settings: Settings) -> float:
    """One process of each machine samples it."""
    if settings.mode == "online" and settings.system_metrics and is_first_of_machine(os.environ):
        return settings.system_metrics_interval_s
    return 0.0


def _choice(value: str | None, choices: Mapping[str, int], name: str, default: int) -> int:
    if value is None:
        return default
    if value.lower() not in choices:
        raise ConfigurationError(f"{name} is {value!r}; it must be one of {sorted(choices)}")
    return choices[value.lower()]
