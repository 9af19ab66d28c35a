"""What the job's launcher says: rank, world size, run id, attempt. Pure: a mapping in, a value out.

Read, in order of preference: arguments of `init`, `HEADRACE_*` variables,
torchrun's (`RANK`, `WORLD_SIZE`, `TORCHELASTIC_RUN_ID`,
`TORCHELASTIC_RESTART_COUNT`), Slurm's for a step started by `srun`
(`SLURM_PROCID`, `SLURM_NTASKS` of the step, `SLURM_JOB_ID`, `SLURM_STEP_ID`,
`SLURM_CLUSTER_NAME`, `SLURM_RESTART_COUNT`).

The run id. Ranks of one job must name the same run without talking to each
other, so without `run_id=` or `HEADRACE_RUN_ID` it is

    derived_identifier(launcher, cluster, job id, number of this init)

(see identifiers.py): launcher `torchrun` with its run id as job id, or
`slurm` with `<job id>.<step id>`; `cluster` is `SLURM_CLUSTER_NAME` or empty;
the number counts, from 0, the inits of this process that derived their id. A
restarted job has the same job id, so its attempts join one run. A job id that
is not unique (torchrun's `none`) or missing is an error when there are several
ranks, never a merge of two jobs; a single process gets a new random id.

Restart counts are hints (agents do not synchronise them); an explicit attempt
wins.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from headrace.errors import ConfigurationError
from headrace.identifiers import derived_identifier, is_identifier, new_identifier

_NOT_UNIQUE = frozenset({"", "none", "null", "0", "default"})
"""Job ids that many jobs share; torchrun's default is `none`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """This process within its job.

    Attributes:
        run_id: 32 lower-case hex digits.
        rank: from 0.
        world_size: processes in the job, at least 1.
        attempt: from 1.
        resume_step: the first step computed anew; None: fresh start.
        derived: whether the run id was derived from the launcher's job id.
    """

    run_id: str
    rank: int
    world_size: int
    attempt: int
    resume_step: int | None
    derived: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Launcher:
    """What one launcher's variables say."""

    name: str
    cluster: str
    job_id: str
    rank: int
    world_size: int
    restart_count: int


def detect_job(
    environ: Mapping[str, str],
    *,
    derived_before: int,
    run_id: str | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    attempt: int | None = None,
    resume_step: int | None = None,
) -> Job:
    """The job this process belongs to; arguments win over variables.

    Args:
        environ: the process's environment.
        derived_before: how many inits of this process derived their id.

    Raises:
        ConfigurationError: a malformed value, a rank outside the world, or
            several ranks without a way to agree on a run id.
    """
    launcher = _launcher(environ)
    chosen_rank = _first(rank, environ, "HEADRACE_RANK", launcher.rank, least=0)
    chosen_world = _first(world_size, environ, "HEADRACE_WORLD_SIZE", launcher.world_size, least=1)
    if rank is not None and world_size is None and "HEADRACE_WORLD_SIZE" not in environ:
        chosen_world = max(chosen_world, rank + 1)
    if chosen_rank >= chosen_world:
        raise ConfigurationError(f"rank {chosen_rank} is not below world size {chosen_world}")
    given = run_id or environ.get("HEADRACE_RUN_ID")
    derived = False
    if given:
        chosen_run = given.replace("-", "").lower()
        if not is_identifier(chosen_run):
            raise ConfigurationError(
                f"run_id (HEADRACE_RUN_ID) is {given!r}; it must be 32 hex digits"
            )
    elif launcher.job_id.lower() not in _NOT_UNIQUE:
        derived = True
        chosen_run = derived_identifier(
            launcher.name, launcher.cluster, launcher.job_id, str(derived_before)
        )
    elif chosen_world > 1:
        raise ConfigurationError(_disagreement(launcher, chosen_world))
    else:
        chosen_run = new_identifier()
    hint = launcher.restart_count + 1 if given or derived else 1
    return Job(
        run_id=chosen_run,
        rank=chosen_rank,
        world_size=chosen_world,
        attempt=_first(attempt, environ, "HEADRACE_ATTEMPT", hint, least=1),
        resume_step=_optional(resume_step, environ, "HEADRACE_RESUME_STEP"),
        derived=derived,
    )


def is_first_of_machine(environ: Mapping[str, str]) -> bool:
    """Whether this is the job's first process on its machine (torchrun, Slurm); True if unknown."""
    return environ.get("LOCAL_RANK", environ.get("SLURM_LOCALID", "0")) in {"", "0"}


def _launcher(environ: Mapping[str, str]) -> _Launcher:
    cluster = environ.get("SLURM_CLUSTER_NAME", "")
    if "RANK" in environ and "WORLD_SIZE" in environ:
        elastic = "TORCHELASTIC_RUN_ID" in environ
        return _Launcher(
            name="torchrun",
            cluster=cluster,
            job_id=environ["TORCHELASTIC_RUN_ID"] if elastic else "",
            rank=_variable(environ, "RANK", 0),
            world_size=_variable(environ, "WORLD_SIZE", 1),
            restart_count=_variable(environ, "TORCHELASTIC_RESTART_COUNT", 0),
        )
    if "SLURM_PROCID" in environ and "SLURM_STEP_ID" in environ:
        job, step = environ.get("SLURM_JOB_ID", ""), environ["SLURM_STEP_ID"]
        tasks = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else "SLURM_NTASKS"
        return _Launcher(
            name="slurm",
            cluster=cluster,
            job_id=f"{job}.{step}" if job else "",
            rank=_variable(environ, "SLURM_PROCID", 0),
            world_size=_variable(environ, tasks, 1),
            restart_count=_variable(environ, "SLURM_RESTART_COUNT", 0),
        )
    return _Launcher(name="", cluster="", job_id="", rank=0, world_size=1, restart_count=0)


def _disagreement(launcher: _Launcher, world_size: int) -> str:
    said = (
        f"torchrun's job id is {launcher.job_id!r}, which other jobs share"
        if launcher.name == "torchrun" and launcher.job_id
        else "the launcher names no job id"
    )
    return (
        f"the {world_size} ranks of this job cannot agree on a run id: {said}. Pass run_id=, set "
        "HEADRACE_RUN_ID, or start torchrun with --rdzv-id=<unique> or --standalone"
    )


def _variable(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name, "")
    if not text:
        return default
    try:
        return int(text)
    except ValueError:
        raise ConfigurationError(f"{name} is {text!r}; it must be an integer") from None


def _first(
    argument: int | None, environ: Mapping[str, str], name: str, default: int, *, least: int
) -> int:
    value = argument if argument is not None else _variable(environ, name, default)
    if not least <= value < 2**31:
        raise ConfigurationError(
            f"{name.removeprefix('HEADRACE_').lower()} ({name}) is {value}; "
            f"it must be in [{least}, 2^31)"
        )
    return value


def _optional(argument: int | None, environ: Mapping[str, str], name: str) -> int | None:
    if argument is not None or not environ.get(name):
        return argument
    return _variable(environ, name, 0)
