"""The harness itself: its cases are well-formed, its encodings legal, its judgement strict."""

import json
import subprocess

import jsonschema
import pytest
from google.protobuf.json_format import ParseDict
from headrace.v1.metric_service_pb2 import WriteMetricsRequest

from gateway.rpc.wire import decode
from tests.conformance.cases import SCENARIOS, SCHEMA, Case, all_cases
from tests.conformance.clients import ROOT, Client, all_clients
from tests.conformance.replay import same_message
from tests.conformance.verdict import differences, stored_differences

ENCODINGS = json.loads((SCENARIOS / "wire" / "encodings.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.name)
def test_a_case_follows_the_schema(case: Case) -> None:
    jsonschema.validate(
        case.document,
        json.loads(SCHEMA.read_text(encoding="utf-8")),
        cls=jsonschema.Draft202012Validator,
    )


@pytest.mark.parametrize("encoding", ENCODINGS["encodings"], ids=lambda encoding: encoding["name"])
def test_every_legal_encoding_decodes_alike(encoding: dict[str, str]) -> None:
    expected = ParseDict({"batch": ENCODINGS["batch"]}, WriteMetricsRequest())
    found = decode(bytes.fromhex(encoding["hex"]))
    assert same_message(found, decode(expected.SerializeToString()))


def test_every_folder_of_a_client_names_its_runners() -> None:
    assert {"python", "python-stubs"} <= {client.name for client in all_clients()}


@pytest.mark.parametrize("client", all_clients(), ids=lambda client: client.name)
def test_a_client_is_skipped_only_for_want_of_tools(client: Client) -> None:
    target = "check" if client.folder.name == "python" else f"check-{client.folder.name}"
    assert target in (ROOT / ".ci" / "run").read_text(encoding="utf-8").split()
    done = subprocess.run(
        ["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ("SKIPPED" in done.stdout) == bool(client.missing_tools)


def test_what_a_client_lacks_exists() -> None:
    known = {case.name for case in all_cases()}.union(*(case.features for case in all_cases()))
    for client in all_clients():
        assert set(client.lacks) <= known, client.name


def test_a_missing_a_doubled_and_a_changed_point_are_found() -> None:
    case = next(case for case in all_cases() if case.name == "cut")
    expected = case.stored_points()
    key = next(iter(expected))
    for wrong in (expected[key][1:], expected[key].repeat(2)):
        assert list(stored_differences(expected, {**expected, key: wrong}))
    changed = expected[key].copy()
    changed["value"][0] = 7.5
    assert list(stored_differences(expected, {**expected, key: changed}))
    assert list(stored_differences({}, {key: expected[key]}))
    assert not list(stored_differences(expected, expected))


def test_an_outcome_may_say_more_and_nothing_else() -> None:
    assert not list(differences({"a": 1}, {"a": 1.0, "b": 2}, "x"))
    assert not list(differences({"a": "NaN"}, {"a": "NaN"}, "x"))
    assert list(differences({"a": [1]}, {"a": [1, 2]}, "x"))
    assert list(differences({"a": None}, {"a": "UNAVAILABLE"}, "x"))
    assert list(differences({"a": {"at_least": 2}}, {"a": 1}, "x"))
    assert list(differences({"a": False}, {"a": 0}, "x"))
