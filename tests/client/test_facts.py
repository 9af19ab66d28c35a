"""Facts of a job are found by reading files, as git lays them out."""

import subprocess
from pathlib import Path

import pytest
from headrace.facts import find_origin, git_commit


def git(directory: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@localhost")
    return subprocess.run(
        ["git", "-C", str(directory), *identity, *arguments],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    directory = tmp_path / "repository"
    (directory / "deep" / "er").mkdir(parents=True)
    git(directory, "init", "--quiet")
    git(directory, "commit", "--quiet", "--allow-empty", "--message", "one")
    return directory


def test_the_commit_is_the_one_git_names(repository: Path, tmp_path: Path) -> None:
    commit = git(repository, "rev-parse", "HEAD")
    assert git_commit(repository / "deep" / "er") == commit
    git(repository, "pack-refs", "--all")
    assert git_commit(repository) == commit
    git(repository, "worktree", "add", "--quiet", str(tmp_path / "tree"), "-b", "other")
    git(tmp_path / "tree", "commit", "--quiet", "--allow-empty", "--message", "two")
    assert git_commit(tmp_path / "tree") == git(tmp_path / "tree", "rev-parse", "HEAD") != commit
    git(repository, "checkout", "--quiet", "--detach")
    assert git_commit(repository) == commit


def test_without_a_repository_or_with_a_strange_one_there_is_no_commit(tmp_path: Path) -> None:
    assert git_commit(tmp_path) == ""
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").write_text("ref: refs/heads/.invalid\n")
    assert git_commit(tmp_path) == ""
    (tmp_path / ".git" / "HEAD").write_text("nonsense")
    assert git_commit(tmp_path) == ""


def test_a_container_without_the_repository_names_its_commit() -> None:
    assert find_origin({"HEADRACE_GIT_COMMIT": "abc123"}).git_commit == "abc123"
