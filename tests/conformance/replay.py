"""One client replays one case: start its runner, play the faults it asks for, judge."""

import asyncio
import contextlib
import hashlib
import json
import tempfile
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from google.protobuf.json_format import ParseDict
from headrace.v1.metric_service_pb2 import WriteMetricsRequest

from gateway.domain.errors import HeadraceError
from gateway.ingest.session import Batch
from gateway.rpc.wire import decode
from tests.conformance.cases import SCENARIOS, Case
from tests.conformance.clients import ROOT, Client
from tests.conformance.stage import FaultError, Stage
from tests.conformance.verdict import outcome_differences, stored_differences

REPLAY_DEADLINE_S: Final = 120.0
_LINE_BYTES_MAX: Final = 64 << 20
_STDERR_CHARACTERS: Final = 4_000
VECTORS: Final = SCENARIOS / "wire" / "vectors.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How a replay went: `problems` is empty when all was as the case says."""

    problems: tuple[str, ...]
    elapsed_s: float


async def replay(client: Client, case: Case, stage: Stage) -> Verdict:
    """Replay `case` by `client` on `stage`."""
    started_s = time.time()
    case = case.with_fresh_ids()
    with tempfile.TemporaryDirectory(prefix="headrace-replay-") as name:
        problems = [problem async for problem in _problems(client, case, stage, Path(name))]
    return Verdict(problems=tuple(problems), elapsed_s=time.time() - started_s)


async def _problems(client: Client, case: Case, stage: Stage, directory: Path) -> Any:
    await stage.reset()
    _make_files(case, directory)
    scenario = directory / "scenario.json"
    scenario.write_text(json.dumps(case.document), encoding="utf-8")
    addresses = stage.addresses(case.document.get("gateway", {}).get("addresses", 1))
    arguments = ["--address", addresses, "--scenario", str(scenario)]
    arguments += ["--directory", str(directory)]
    if token := {"good": stage.token, "wrong": "hrt_wrong"}.get(case.document.get("token", "")):
        arguments += ["--token", token]
    if stage.authority:
        arguments += ["--tls-ca", str(stage.authority)]
    first_time_s = time.time()
    with (directory / "stderr").open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            *client.run,
            *arguments,
            cwd=ROOT,
            stdin=PIPE,
            stdout=PIPE,
            stderr=stderr,
            limit=_LINE_BYTES_MAX,
        )
        try:
            async with asyncio.timeout(REPLAY_DEADLINE_S):
                result = await _converse(process, case, stage)
                await process.wait()
        except (TimeoutError, FaultError, ValueError) as error:
            yield f"{type(error).__name__}: {error}"
            result = None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    if process.returncode:
        yield f"the runner ended with {process.returncode}"
    said = (directory / "stderr").read_text(encoding="utf-8", errors="replace").strip()
    if result is None:
        yield f"no result; it said: {said[-_STDERR_CHARACTERS:]}"
        return
    for problem in outcome_differences(case, result, client.silent):
        yield problem
    try:
        stored = await stage.stored(case.run_ids(), first_time_s, time.time())
    except FaultError as error:
        yield str(error)
        return
    for problem in stored_differences(case.stored_points(), stored):
        yield problem
    for problem in _file_differences(case, directory):
        yield problem


async def _converse(process: Process, case: Case, stage: Stage) -> dict[str, Any] | None:
    """Read the runner's lines, play faults, return its result; None when it ended without."""
    assert process.stdout is not None
    assert process.stdin is not None
    writers: dict[str, dict[str, Any]] = {}
    seen = 0
    while line := await process.stdout.readline():
        message = json.loads(line)
        if "result" in message:
            result: dict[str, Any] = message["result"]
            process.stdin.close()
            return result
        index = message["fault"]
        step = case.steps[index]
        for earlier in case.steps[seen:index]:
            if earlier["do"] == "open_writer":
                writers[earlier["writer"]] = earlier
        seen = index
        await stage.play(step, writers.get(step.get("writer", ""), step))
        with contextlib.suppress(ConnectionError):
            process.stdin.write(b"{}\n")
            await process.stdin.drain()
    return None


def _make_files(case: Case, directory: Path) -> None:
    """Make the case's files: bytes that no compression or repetition could fake."""
    for name, size in case.document.get("files", {}).items():
        (directory / name).write_bytes(hashlib.shake_128(name.encode()).digest(size))


def _file_differences(case: Case, directory: Path) -> Iterator[str]:
    for step in case.steps:
        if step["do"] != "download" or step.get("expect", {}).get("error"):
            continue
        name = step["file"]
        back = directory / name
        original = directory / name.removesuffix(".back")
        if not back.exists() or back.read_bytes() != original.read_bytes():
            yield f"the file {name} is not what was uploaded"
        if list(directory.glob(f"{name}.*")):
            yield f"the download of {name} left something behind"


async def check_encoding(client: Client) -> Verdict:
    """Let `client` encode the wire vectors and compare what the gateway decodes."""
    started = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *client.run, "--encode", str(VECTORS), cwd=ROOT, stdin=DEVNULL, stdout=PIPE
    )
    output, _ = await asyncio.wait_for(process.communicate(), REPLAY_DEADLINE_S)
    lines = output.decode().split()
    vectors = json.loads(VECTORS.read_text(encoding="utf-8"))
    problems = []
    if len(lines) != len(vectors) or process.returncode:
        problems.append(f"{len(lines)} messages for {len(vectors)} vectors")
    for line, vector in zip(lines, vectors, strict=False):
        expected = decode(
            ParseDict(vector["message"], WriteMetricsRequest()).SerializeToString(
                deterministic=True
            )
        )
        try:
            found = decode(bytes.fromhex(line))
        except (ValueError, HeadraceError) as error:
            problems.append(f"{vector['name']}: {error}")
            continue
        if not same_message(expected, found):
            problems.append(f"{vector['name']}: decoded as {found}")
    return Verdict(problems=tuple(problems), elapsed_s=time.monotonic() - started)


def same_message(one: Batch | WriteMetricsRequest, other: Batch | WriteMetricsRequest) -> bool:
    """Whether two decoded messages say the same, bit for bit."""
    if isinstance(one, Batch) and isinstance(other, Batch):
        return (
            one.first_sequence == other.first_sequence
            and one.record_count == other.record_count
            and one.series_index.tobytes() == other.series_index.tobytes()
            and one.step.tobytes() == other.step.tobytes()
            and one.time.tobytes() == other.time.tobytes()
            and _bits(one) == _bits(other)
        )
    return one == other


def _bits(batch: Batch) -> list[str]:
    # Any NaN is as good as another; -0.0 is not 0.0.
    return [value.hex() for value in batch.value.tolist()]
