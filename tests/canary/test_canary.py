"""`headrace-gateway canary` beside a live gateway: healthy, killed, and absent."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import asyncpg
import pytest
import trustme

from benchmarks.site import free_port
from gateway.canary.ledger import Verdict
from gateway.canary.measurements import Measurements
from gateway.canary.probe import Pace, Target, _Conversation, _Stream, _Writer, watch
from gateway.cli import main
from tests.support.command import Done, run_command
from tests.support.gateway_process import GatewayProcess
from tests.support.waiting import eventually, eventually_async

PROGRAM = Path(sys.executable).with_name("headrace-gateway")


def canary(address: str, *options: str, environment: Mapping[str, str] | None = None) -> Done:
    address_option = ["--address", address] if address else []
    return run_command(
        main, "canary", *address_option, "--metrics-listen", "off", *options,
        environment=environment,
    )  # fmt: skip


def test_a_healthy_gateway_passes_and_is_timed(shared_gateway: GatewayProcess) -> None:
    done = canary(shared_gateway.address, "--beats", "3", "--interval-s", "0.05", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["written"] == report["acknowledged"] == 30
    assert report["beats"] == 3
    assert report["ack_p50_ms"] > 0
    assert report["read_p50_ms"] > 0
    assert not any(report[kind] for kind in ("lost", "doubled", "disordered", "wrong", "failures"))


async def test_runs_are_replaced_and_a_killed_gateway_loses_nothing(
    mortal_gateway: GatewayProcess,
) -> None:
    measurements = Measurements()
    pace = Pace(interval_s=0.02, records=5, beats=60, run_records=50)
    task = asyncio.create_task(watch(Target(address=mortal_gateway.address), pace, measurements))
    async with asyncio.timeout(60):
        for beats in (15, 35):
            await eventually_async(partial(_beaten, measurements, beats), f"{beats} beats")
            await asyncio.to_thread(mortal_gateway.kill)
            await asyncio.to_thread(mortal_gateway.start)
        await task
    report = measurements.report()
    assert measurements.healthy, report
    assert report["failures"] >= 1
    assert report["acknowledged"] == report["written"]


def test_a_port_for_metrics_that_is_in_use_is_said_to_be() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        address = f"127.0.0.1:{holder.getsockname()[1]}"
        done = canary("127.0.0.1:9", "--metrics-listen", address)
    assert done.returncode == 1
    assert f"metrics cannot listen on {address}: " in done.stderr
    assert "Traceback" not in done.stderr


async def test_points_that_go_between_two_reads_are_lost(
    shared_gateway: GatewayProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = await asyncpg.connect(shared_gateway.dsn)
    gone: list[int] = []
    true_read = _Conversation._read

    async def read_what_is_left(self: _Conversation, writer: _Writer) -> Verdict:
        # What the gateway says that there is stays as it was: only a read can tell.
        rows = await connection.fetch(
            "DELETE FROM loose_chunks WHERE run_id = $1 AND last_step <= 500 "
            "RETURNING last_step - first_step + 1 AS points",
            uuid.UUID(writer.run_id),
        )
        gone.append(sum(row["points"] for row in rows))
        return await true_read(self, writer)

    monkeypatch.setattr(_Conversation, "_read", read_what_is_left)
    measurements = Measurements()
    pace = Pace(interval_s=0.01, records=1_000, beats=3)
    assert await watch(Target(address=shared_gateway.address), pace, measurements)
    await connection.close()
    assert gone[0] > 200
    assert measurements.report()["lost"] == sum(gone)


async def test_a_loss_larger_than_a_batch_is_counted_once_and_made_good(
    shared_gateway: GatewayProcess,
) -> None:
    measurements = Measurements()
    target = Target(address=shared_gateway.address)
    writer = _Writer(written=9_000, acknowledged=9_000, counted=9_000, verified=9_000)
    done = 0

    def third_beat_done() -> bool:
        nonlocal done
        done += 1
        return done == 3

    async with asyncio.timeout(30), target.channel() as channel:
        conversation = _Conversation(channel, target, measurements)
        assert await conversation.hold(writer, Pace(interval_s=0.01), third_beat_done)
    report = measurements.report()
    assert report["lost"] == 9_000
    assert not any(report[kind] for kind in ("doubled", "disordered", "wrong"))
    assert report["acknowledged"] == report["written"] == 30
    assert writer.verified == writer.acknowledged == 9_030


async def test_a_loss_is_counted_once_even_if_it_cannot_be_made_good(
    shared_gateway: GatewayProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_stream: _Stream, _sequences: object) -> None:
        raise TimeoutError

    measurements = Measurements()
    target = Target(address=shared_gateway.address)
    writer = _Writer(written=50, acknowledged=50)
    monkeypatch.setattr(_Stream, "write", fail)
    async with target.channel() as channel:
        conversation = _Conversation(channel, target, measurements)
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await conversation.hold(writer, Pace(), lambda: True)
    assert measurements.report()["lost"] == 50


def test_a_gateway_that_is_away_is_waited_for_and_counted() -> None:
    with subprocess.Popen(
        [
            PROGRAM, "canary", "--address", "127.0.0.1:9", "--interval-s", "0.05",
            "--metrics-listen", "off", "--json",
        ],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        warned = process.stdout.readline()
        process.terminate()
        output, _ = process.communicate(timeout=30)
    assert "UNAVAILABLE" in warned
    report = json.loads(output.splitlines()[-1])
    assert report["failures"] >= 1
    assert process.returncode == 1


def test_a_number_of_beats_is_also_the_most_failures_in_a_row() -> None:
    done = canary("127.0.0.1:9", "--beats", "2", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout.splitlines()[-1])["failures"] == 2


def test_a_refusal_ends_a_number_of_beats_at_once(database_dsn: str, tmp_path: Path) -> None:
    with GatewayProcess(database_dsn, tmp_path, arguments=["--auth"]) as gateway:
        done = subprocess.run(
            [PROGRAM, "canary", "--address", gateway.address, "--metrics-listen", "off",
             "--token", "hr_wrong", "--beats", "1000", "--json"],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
    assert done.returncode == 1
    assert "UNAUTHENTICATED" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1])["failures"] == 1


async def test_a_silent_stream_is_a_failure(
    gateway: GatewayProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.canary.probe.CALL_DEADLINE_S", 2.0)
    measurements = Measurements()
    target, pace = Target(address=gateway.address), Pace(interval_s=0.5, records=5)
    task = asyncio.create_task(watch(target, pace, measurements))
    async with asyncio.timeout(90):
        await eventually_async(partial(_beaten, measurements, 2), "2 beats")
        os.kill(gateway.pid, signal.SIGSTOP)  # between two beats: the next one waits on the stream
        try:
            await eventually_async(lambda: measurements.report()["failures"], "a failure")
        finally:
            os.kill(gateway.pid, signal.SIGCONT)
        beats = measurements.report()["beats"]
        await eventually_async(partial(_beaten, measurements, beats + 2), "beats again")
    task.cancel()
    assert measurements.healthy


def test_the_address_and_the_authorities_are_those_of_the_client(
    database_dsn: str, tmp_path: Path
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "certificate.pem")
    pair = ["--tls-certificate", f"{tmp_path}/certificate.pem", "--tls-key", f"{tmp_path}/key.pem"]
    with GatewayProcess(database_dsn, tmp_path, arguments=pair) as gateway:
        # The second variable is how gRPC is told of public authorities other than its own.
        for variable in ("HEADRACE_TLS_CA", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"):
            environment = {
                "HEADRACE_ADDRESS": f"https://{gateway.address}",
                variable: str(tmp_path / "ca.pem"),
            }
            done = canary("", "--beats", "1", environment=environment)
            assert done.returncode == 0, done.stdout + done.stderr


def test_faults_are_exported_as_zero_from_the_first_scrape(
    shared_gateway: GatewayProcess,
) -> None:
    port = free_port()
    with subprocess.Popen(
        [
            PROGRAM, "canary", "--address", shared_gateway.address, "--interval-s", "0.05",
            "--metrics-listen", f"127.0.0.1:{port}",
        ],
        stdout=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        url = f"http://127.0.0.1:{port}/metrics"
        page = eventually(lambda: _scraped(url, "read_seconds_count"), "a read on the page")
        process.terminate()
    for kind in ("lost", "doubled", "disordered", "wrong"):
        assert f'headrace_canary_faults_total{{kind="{kind}"}} 0.0' in page
    assert "headrace_canary_ack_seconds_bucket" in page


def test_bad_flags_are_named() -> None:
    done = canary("127.0.0.1:9", "--tls-ca", "/nowhere.pem")
    assert done.returncode == 2
    assert "--tls-ca /nowhere.pem" in done.stderr
    done = canary("nonsense")
    assert done.returncode == 2
    assert "nonsense" in done.stderr


def _beaten(measurements: Measurements, beats: int) -> bool:
    return bool(measurements.report()["beats"] >= beats)


def _scraped(url: str, text: str) -> str | None:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            page: str = answer.read().decode()
    except OSError:
        return None
    return page if text in page else None
