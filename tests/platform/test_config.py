"""Settings come from flags, environment and file, in that order; each mistake is named."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ByteSize

from gateway.config import Settings, SettingsError, load, split_address

RULES = st.builds(
    lambda age, unit, best: {"experiment": "a/b", "max_age": f"{age}{unit}", **best},
    st.integers(0, 999_999_999),
    st.sampled_from("smhdw"),
    st.sampled_from([{}, {"workspace": "w", "keep_top": 3, "by": "metrics.x:min"}]),
)


def problems(
    flags: dict[str, object] | None = None,
    environment: dict[str, str] | None = None,
    file: Path | None = None,
) -> list[str]:
    with pytest.raises(SettingsError) as failed:
        load(flags=flags or {}, environment=environment or {}, file=file)
    return failed.value.problems


def test_flags_win_over_environment_and_environment_over_file(tmp_path: Path) -> None:
    file = tmp_path / "headrace.toml"
    file.write_text("workers = 2\nstreams_max = 5\nlog_level = 'error'\n")
    environment = {
        "HEADRACE_GATEWAY_STREAMS_MAX": "6",
        "HEADRACE_GATEWAY_LOG_LEVEL": "warning",
        "UNRELATED": "x",
    }
    settings = load(flags={"log_level": "debug"}, environment=environment, file=file)
    assert (settings.workers, settings.streams_max, settings.log_level) == (2, 6, "debug")


def test_sizes_may_have_units() -> None:
    environment = {"HEADRACE_GATEWAY_PENDING_BYTES_MAX": "512MiB"}
    assert load(flags={}, environment=environment).pending_bytes_max == 512 * 2**20


def test_every_problem_is_a_line_that_names_its_source(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text("drain_deadline_s = -1\nnonsense = 1\n")
    lines = problems(
        {"workers": 0, "listen": "nowhere"},
        {"HEADRACE_GATEWAY_LOG_LEVEL": "loud", "HEADRACE_GATEWAY_WROKERS": "2"},
        file,
    )
    for start in (
        "--workers: ",
        "--listen: expected host:port (given: 'nowhere')",
        "HEADRACE_GATEWAY_LOG_LEVEL: ",
        "HEADRACE_GATEWAY_WROKERS: no such setting",
        f"{file}: drain_deadline_s: ",
        f"{file}: nonsense: no such setting",
    ):
        assert sum(line.startswith(start) for line in lines) == 1, (start, lines)
    assert len(lines) == 6


def test_what_was_given_by_set_wins_over_a_flag_and_is_named_so() -> None:
    with pytest.raises(SettingsError) as failed:
        load(
            flags={"workers": 2},
            environment={},
            assigned={"nonsense": "1", "workers": "0", "pending_bytes_max": "1"},
        )
    sources = [line.partition(": ")[0] for line in failed.value.problems]
    assert sorted(sources) == [
        "--set nonsense=…",
        "--set pending_bytes_max=…",
        "--set workers=…",
    ]


def test_what_kubernetes_sets_for_a_service_is_ignored() -> None:
    environment = {
        "HEADRACE_GATEWAY_PORT": "tcp://10.0.0.1:7420",
        "HEADRACE_GATEWAY_PORT_7420_TCP_ADDR": "10.0.0.1",
        "HEADRACE_GATEWAY_SERVICE_HOST": "10.0.0.1",
    }
    assert load(flags={}, environment=environment) == Settings()


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ({"workers": 3}, "ingest_connections=2 is too few for workers=3"),
        (
            {"workers": 5, "ingest_connections": 5, "query_connections": 9},
            "query_connections=9 is too few for workers=5: each worker needs two, one while a"
            " long read holds the other; set it to 10 or more, or leave it out",
        ),
        ({"query_connections": 1}, "query_connections=1 is too few for workers=1"),
        ({"stream_pending_bytes_max": "300MiB"}, "more than a worker's share"),
        ({"tls_certificate": "x.pem"}, "tls_certificate and tls_key go together"),
        ({"tls_certificate": "x.pem", "tls_key": "y.pem"}, "no such file: x.pem"),
        ({"listen": "0.0.0.0:7420"}, "reachable from other machines"),
        ({"dsn": "postgresql://x", "embedded": "y"}, "exclude each other"),
        ({"dsn": "host=x"}, "--dsn: expected postgresql://"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    flags: dict[str, object], text: str
) -> None:
    [line] = problems(flags)
    assert text in line


@pytest.mark.parametrize("password", ["se/cret", "se?cret", "se#cret", "s@e/cret", "s[cret"])
def test_a_password_that_is_not_escaped_is_refused_and_not_repeated(password: str) -> None:
    [line] = problems({"dsn": f"postgresql://u:{password}@db:5432/x"})
    assert line.startswith("--dsn: cannot be read")
    assert "cret" not in line


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://u:se%2Fcr%40t@db:5432/x?sslmode=require&application_name=a%40b",
        "postgresql://u:a:b@one:5432,two:5433,three/x",
        "postgresql://u@/x?host=/run/postgresql&port=5432",
        "postgres://u@[::1]:5432/x",
        "postgresql:///x",
        "",
    ],
)
def test_what_libpq_reads_is_a_dsn(dsn: str) -> None:
    assert load(flags={"dsn": dsn}, environment={}).dsn == dsn


@pytest.mark.parametrize("name", ["s3_endpoint_url", "s3_public_endpoint_url"])
def test_an_endpoint_url_has_a_scheme_and_a_host(name: str) -> None:
    for bad in ("minio:9000", "minio", "//minio", "ftp://minio", "http://a:b", "http://a_b"):
        [line] = problems({name: bad})
        assert "expected http://host:port or https://host:port" in line
        assert name in line.replace("-", "_")
    for good in ("http://minio:9000", "https://S3.example.org/", "http://[::1]:9000"):
        assert getattr(load(flags={name: good}, environment={}), name) == good


def test_a_secret_is_never_repeated() -> None:
    [line] = problems({"dsn": ["postgresql://u:hunter2@h/d"]})
    assert "hunter2" not in line
    assert "hunter2" not in repr(Settings(dsn="postgresql://u:hunter2@h/d"))


def test_a_file_that_is_not_toml_or_not_there_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("= 1")
    assert problems(file=broken)[0].startswith(f"{broken}: ")
    assert problems(file=tmp_path / "absent.toml")[0].endswith("No such file or directory")


@given(
    workers=st.integers(1, 8),
    ingest=st.integers(8, 64),
    query=st.integers(16, 64),
    pending_mib=st.integers(256, 4096),
    streams=st.integers(8, 10_000),
    rules=st.lists(RULES, max_size=2),
)
def test_the_shares_of_all_workers_are_the_whole(
    *,
    workers: int,
    ingest: int,
    query: int,
    pending_mib: int,
    streams: int,
    rules: list[object],
) -> None:
    settings = load(
        flags={
            "workers": workers,
            "ingest_connections": ingest,
            "query_connections": query,
            "pending_bytes_max": pending_mib * 2**20,
            "streams_max": streams,
            "cleanup": rules,
        },
        environment={},
    )
    shares = [settings.share(index) for index in range(workers)]
    for name in ("ingest_connections", "query_connections", "pending_bytes_max", "streams_max"):
        parts = [getattr(share, name) for share in shares]
        assert sum(parts) == getattr(settings, name)
        assert max(parts) - min(parts) <= 1
        assert min(parts) >= 1
    for share in shares:  # what a worker gets through its pipe is again valid
        assert Settings.model_validate_json(share.model_dump_json()) == share


@given(workers=st.integers(1, 64), spare=st.none() | st.integers(0, 128))
def test_a_long_read_leaves_every_worker_a_query_connection(
    workers: int, spare: int | None
) -> None:
    flags = {"workers": workers, "ingest_connections": 64, "pending_bytes_max": 2**32}
    query = {} if spare is None else {"query_connections": 2 * workers + spare}
    settings = load(flags=flags | query, environment={})
    assert all(settings.share(index).query_connections >= 2 for index in range(workers))


@pytest.mark.parametrize(("workers", "connections"), [(1, 4), (2, 4), (3, 6), (64, 128)])
def test_query_connections_grow_with_the_workers(workers: int, connections: int) -> None:
    settings = Settings(workers=workers, ingest_connections=64, pending_bytes_max=ByteSize(2**32))
    assert settings.query_connections == connections


def test_addresses_are_split() -> None:
    assert split_address("127.0.0.1:7420") == ("127.0.0.1", 7420)
    assert split_address("[::1]:0") == ("::1", 0)
    for bad in ("7420", "host:", ":7420", "host:70000", "host:http"):
        with pytest.raises(ValueError, match=re.escape("host:port")):
            split_address(bad)


def test_every_setting_is_described() -> None:
    source = (Path(__file__).parents[2] / "gateway" / "config.py").read_text()
    for name in Settings.model_fields:
        declared = re.search(rf"^    {name}: .*\n(    .*\n)*?    \"\"\"", source, re.MULTILINE)
        assert declared, name
