"""Part sizes, digests and paths: the contract's examples, and both sides alike."""

import hashlib

import pytest
from headrace import artifact_rules as client
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.domain import artifacts as server
from gateway.domain.errors import HeadraceError

MIB = 1024 * 1024
sizes = st.one_of(
    st.integers(0, server.SIZE_MAX),
    st.integers(-2, 2).map(lambda n: server.SMALL_PART_FILE_BYTES_MAX + n),
    st.integers(-2, 2).map(lambda n: server.LARGE_PART_BYTES * server.PARTS_MAX + n),
)


@given(sizes)
@example(server.SIZE_MAX)
def test_parts_keep_to_the_rules_of_s3(size: int) -> None:
    part, count = server.part_size(size), server.part_count(size)
    assert 5 * MIB <= part <= 5 * 1024 * MIB
    assert 1 <= count <= 10_000
    assert (count - 1) * part < max(size, 1) <= count * part


@given(sizes)
def test_both_sides_cut_files_alike(size: int) -> None:
    assert client.part_size(size) == server.part_size(size)
    assert client.part_count(size) == server.part_count(size)
    last = server.part_count(size)
    assert client.part_range(size, last) == server.part_range(size, last)
    offset, length = server.part_range(size, last)
    assert offset + length == size


def test_multi_gigabyte_files_have_parts_of_64_mib() -> None:
    assert server.part_size(4 * 1024 * MIB) == 64 * MIB


def test_the_examples_of_the_contract_hold() -> None:
    empty = hashlib.sha256(b"").digest()
    assert server.tree_digest(empty).hex().startswith("e3b0c442")
    parts = b"".join(hashlib.sha256(bytes(n * MIB)).digest() for n in (16, 4))
    assert server.tree_digest(parts) == client.tree_digest(parts)
    assert server.tree_digest(parts) == hashlib.sha256(parts).digest()


@given(st.text(max_size=300))
@example("a/../b")
@example("a//b")
@example("/a")
@example("a/")
@example(".")
@example("a\\b")
@example("a\x00b")
@example("\ud800")
@example("x" * 251)
@example("/".join(["x" * 200] * 6))
def test_both_sides_refuse_the_same_paths(path: str) -> None:
    refused = False
    try:
        server.check_path(path)
    except HeadraceError:
        refused = True
    assert refused == bool(client.path_fault(path))


@pytest.mark.parametrize("path", ["a", "a/b.c", "ein Bild/größe.png", "...", "a/.b", "x" * 250])
def test_ordinary_paths_are_taken(path: str) -> None:
    assert server.check_path(path) == path
