"""Every process of a job finds the same run, its own rank, and its attempt; or is told why not."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from headrace.environment import Job, detect_job
from headrace.errors import ConfigurationError
from headrace.identifiers import derived_identifier, is_identifier, new_identifier
from headrace.settings import load_settings

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "TORCHELASTIC_RUN_ID": "3f2a-unique",
    "TORCHELASTIC_RESTART_COUNT": "0",
}
SLURM = {
    "SLURM_PROCID": "5",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_NTASKS": "32",
    "SLURM_JOB_ID": "1234",
    "SLURM_STEP_ID": "0",
    "SLURM_CLUSTER_NAME": "alps",
}


def detect(environ: Mapping[str, str], *, derived_before: int = 0, **arguments: Any) -> Job:
    return detect_job(environ, derived_before=derived_before, **arguments)


def test_a_lone_process_gets_a_new_run_each_time() -> None:
    first, second = detect({}), detect({})
    assert first.run_id != second.run_id
    assert (first.rank, first.world_size, first.attempt, first.resume_step) == (0, 1, 1, None)


@pytest.mark.parametrize(
    ("environ", "rank", "world"), [(TORCHRUN, 3, 8), (SLURM, 5, 16)], ids=["torchrun", "slurm"]
)
def test_all_ranks_derive_one_run_from_the_job_id(
    environ: dict[str, str], rank: int, world: int
) -> None:
    job = detect(environ)
    assert (job.rank, job.world_size, job.attempt, job.derived) == (rank, world, 1, True)
    others = {**environ, "RANK": "0", "SLURM_PROCID": "0", "LOCAL_RANK": "0"}
    assert detect(others).run_id == job.run_id
    assert detect(others, derived_before=1).run_id != job.run_id


def test_the_derivation_is_the_documented_one() -> None:
    assert detect(TORCHRUN).run_id == derived_identifier("torchrun", "", "3f2a-unique", "0")
    assert detect(SLURM, derived_before=2).run_id == derived_identifier(
        "slurm", "alps", "1234.0", "2"
    )
    # The value itself: another release, or another language, must find the same runs.
    assert derived_identifier("slurm", "alps", "1234.0", "2") == "9ece38a39156881a9ef8355b4ed99d9f"


@pytest.mark.parametrize("variable", ["SLURM_JOB_ID", "SLURM_CLUSTER_NAME", "SLURM_STEP_ID"])
def test_another_job_is_another_run(variable: str) -> None:
    assert detect({**SLURM, variable: "77"}).run_id != detect(SLURM).run_id


@pytest.mark.parametrize("shared", ["none", "None", ""])
def test_a_job_id_that_is_not_unique_is_an_error_not_a_merge(shared: str) -> None:
    with pytest.raises(ConfigurationError, match="rdzv-id"):
        detect({**TORCHRUN, "TORCHELASTIC_RUN_ID": shared})
    alone = {**TORCHRUN, "TORCHELASTIC_RUN_ID": shared, "RANK": "0", "WORLD_SIZE": "1"}
    assert detect(alone).run_id != detect(alone).run_id


def test_ranks_without_any_job_id_are_told_to_name_a_run() -> None:
    with pytest.raises(ConfigurationError, match="HEADRACE_RUN_ID"):
        detect({"RANK": "0", "WORLD_SIZE": "2"})
    run_id = new_identifier()
    assert detect({"RANK": "1", "WORLD_SIZE": "2", "HEADRACE_RUN_ID": run_id}).run_id == run_id


def test_a_restart_joins_its_run_as_the_next_attempt() -> None:
    restarted = detect({**TORCHRUN, "TORCHELASTIC_RESTART_COUNT": "2"})
    assert (restarted.run_id, restarted.attempt) == (detect(TORCHRUN).run_id, 3)
    assert detect({**SLURM, "SLURM_RESTART_COUNT": "1"}).attempt == 2


def test_what_is_said_explicitly_wins() -> None:
    environ = {**TORCHRUN, "HEADRACE_ATTEMPT": "7", "HEADRACE_RANK": "2"}
    job = detect(environ)
    assert (job.attempt, job.rank) == (7, 2)
    job = detect(environ, attempt=9, rank=6, run_id="AB" * 16, resume_step=40)
    assert (job.attempt, job.rank, job.run_id, job.resume_step) == (9, 6, "ab" * 16, 40)


@pytest.mark.parametrize(
    ("environ", "arguments", "named"),
    [
        ({"RANK": "x", "WORLD_SIZE": "2"}, {}, "RANK"),
        ({}, {"rank": -1}, "rank"),
        ({}, {"rank": 2, "world_size": 2}, "world size"),
        ({}, {"attempt": 0}, "attempt"),
        ({}, {"run_id": "short"}, "run_id"),
        ({"HEADRACE_RESUME_STEP": "ten"}, {}, "HEADRACE_RESUME_STEP"),
    ],
)
def test_a_bad_value_is_named(
    environ: dict[str, str], arguments: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigurationError, match=named):
        detect(environ, **arguments)


def test_identifiers_have_the_form_of_the_contract() -> None:
    made = [new_identifier() for _ in range(100)]
    assert all(is_identifier(identifier) and identifier[12] == "7" for identifier in made)
    assert len(set(made)) == 100
    assert sorted(made, key=lambda identifier: identifier[:12]) == made


def test_settings_come_from_arguments_then_variables_then_defaults(tmp_path: Path) -> None:
    variables = {
        "HEADRACE_ADDRESS": "https://gateway.example:443",
        "HEADRACE_MODE": "offline",
        "HEADRACE_STRICT": "yes",
        "HEADRACE_SPOOL_DIR": str(tmp_path),
    }
    settings = load_settings(variables, mode="disabled")
    assert (settings.address, settings.mode) == ("https://gateway.example:443", "disabled")
    assert settings.strict
    assert settings.spool_dir == tmp_path
    assert load_settings({}).address == "127.0.0.1:7420"
    assert load_settings(settings.environment()).address == settings.address


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"HEADRACE_ADDRESS": "gateway"}, "HEADRACE_ADDRESS"),
        ({"HEADRACE_MODE": "sometimes"}, "HEADRACE_MODE"),
        ({"HEADRACE_STRICT": "perhaps"}, "HEADRACE_STRICT"),
        ({"HEADRACE_FINISH_TIMEOUT_S": "soon"}, "HEADRACE_FINISH_TIMEOUT_S"),
        ({"HEADRACE_FINISH_TIMEOUT_S": "-1"}, "HEADRACE_FINISH_TIMEOUT_S"),
    ],
)
def test_a_bad_setting_names_its_variable(variables: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        load_settings(variables)
