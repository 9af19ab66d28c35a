"""TLS: certificates may be replaced while the gateway runs, and a bad one changes nothing."""

import asyncio
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import headrace
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.conftest import NewDatabase
from tests.support.gateway_process import GatewayProcess

AUTHORITY = trustme.CA()


def write_pair(directory: Path, issued: trustme.LeafCert) -> None:
    """Replace certificate and key, each atomically, as a renewing agent does."""
    for name, blob in (
        ("key.pem", issued.private_key_pem),
        ("certificate.pem", issued.cert_chain_pems[0]),
    ):
        partial = directory / f"{name}.partial"
        blob.write_to_path(partial)
        partial.rename(directory / name)


@pytest.fixture(scope="module")
def tls_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the module's gateway finds its certificate and key."""
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def tls_gateway(new_database: NewDatabase, tls_directory: Path) -> Iterator[GatewayProcess]:
    write_pair(tls_directory, AUTHORITY.issue_cert("127.0.0.1", "localhost"))
    pair = ["--tls-certificate", f"{tls_directory}/certificate.pem"]
    pair += ["--tls-key", f"{tls_directory}/key.pem"]
    with (
        new_database() as dsn,
        GatewayProcess(dsn, tls_directory, arguments=pair) as process,
    ):
        yield process


async def served_certificate(address: str) -> bytes:
    """Return the DER certificate that a new connection is shown."""
    context = ssl.create_default_context(cadata=AUTHORITY.cert_pem.bytes().decode())
    context.set_alpn_protocols(["h2"])
    host, _, port = address.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    certificate: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()
    return certificate


async def check_health(address: str, credentials: grpc.ChannelCredentials | None) -> None:
    opened = (
        grpc.aio.secure_channel(address, credentials)
        if credentials
        else grpc.aio.insecure_channel(address)
    )
    async with opened as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        await stub.Check(health_pb2.HealthCheckRequest(), timeout=20)


def trusting(
    client: trustme.LeafCert | None = None,
) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        AUTHORITY.cert_pem.bytes(),
        client.private_key_pem.bytes() if client else None,
        client.cert_chain_pems[0].bytes() if client else None,
    )


async def test_calls_are_served_over_tls_only(tls_gateway: GatewayProcess) -> None:
    await check_health(tls_gateway.address, trusting())
    with pytest.raises(grpc.aio.AioRpcError):
        await check_health(tls_gateway.address, None)


async def test_a_replaced_certificate_is_served_and_a_bad_one_is_not(
    tls_gateway: GatewayProcess, tls_directory: Path
) -> None:
    first = await served_certificate(tls_gateway.address)
    write_pair(tls_directory, AUTHORITY.issue_cert("127.0.0.1"))
    second = await served_certificate(tls_gateway.address)
    assert second != first

    (tls_directory / "certificate.pem").write_text("nonsense")
    assert await served_certificate(tls_gateway.address) == second
    stranger = AUTHORITY.issue_cert("127.0.0.1")  # right form, but not the key's
    stranger.cert_chain_pems[0].write_to_path(tls_directory / "certificate.pem")
    assert await served_certificate(tls_gateway.address) == second
    (tls_directory / "key.pem").unlink()
    assert await served_certificate(tls_gateway.address) == second
    assert "certificate kept" in tls_gateway.log_path.read_text()

    write_pair(tls_directory, AUTHORITY.issue_cert("127.0.0.1"))
    assert await served_certificate(tls_gateway.address) not in (first, second)
    await check_health(tls_gateway.address, trusting())


async def test_clients_show_a_certificate_when_asked(database_dsn: str, tmp_path: Path) -> None:
    write_pair(tmp_path, AUTHORITY.issue_cert("127.0.0.1"))
    AUTHORITY.cert_pem.write_to_path(tmp_path / "ca.pem")
    arguments = ["--tls-certificate", f"{tmp_path}/certificate.pem"]
    arguments += ["--tls-key", f"{tmp_path}/key.pem", "--tls-client-ca", f"{tmp_path}/ca.pem"]
    with GatewayProcess(database_dsn, tmp_path, arguments=arguments) as gateway:
        await check_health(gateway.address, trusting(AUTHORITY.issue_cert("client")))
        for bad in (trusting(), trusting(trustme.CA().issue_cert("client"))):
            with pytest.raises(grpc.aio.AioRpcError):
                await check_health(gateway.address, bad)


def test_a_relative_authority_is_found_by_senders_and_by_commands_run_elsewhere(
    tls_gateway: GatewayProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    AUTHORITY.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.chdir(tmp_path)
    address = f"https://{tls_gateway.address}"
    with headrace.init(
        address=address, tls_ca="ca.pem", spool_dir=tmp_path / "spool", quiet=True
    ) as run:
        run.log({"loss": 1.0})
    assert run.status().done

    monkeypatch.setenv("HEADRACE_LOGIN_FILE", str(tmp_path / "login.json"))
    command = [sys.executable, "-m", "headrace.cli"]
    login = [*command, "login", address, "--tls-ca", "ca.pem", "--token", ""]
    subprocess.run(login, check=True, timeout=60)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    listed = [*command, "runs", "show", run.id]
    subprocess.run(listed, check=True, timeout=60, stdout=subprocess.DEVNULL)


def test_a_bad_certificate_at_start_is_said_to_be(database_dsn: str, tmp_path: Path) -> None:
    for name in ("certificate.pem", "key.pem"):
        (tmp_path / name).write_text("nonsense")
    pair = ["--tls-certificate", f"{tmp_path}/certificate.pem", "--tls-key", f"{tmp_path}/key.pem"]
    with pytest.raises(RuntimeError, match="does not serve"):
        GatewayProcess(database_dsn, tmp_path, arguments=pair).start()
    assert "Traceback" not in (tmp_path / "gateway.log").read_text()
