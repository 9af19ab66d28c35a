"""The client's configuration: arguments, `HEADRACE_*` variables, the stored login, defaults.

Parsed once, here, into a frozen value; a bad one raises ConfigurationError
naming it. The job's own variables (torchrun, Slurm) are read in
`environment`. Imports nothing heavy: this runs in the training process.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from headrace.errors import ConfigurationError
from headrace.login_file import Login, login_path, read_login

Mode = Literal["online", "offline", "disabled"]

DEFAULT_ADDRESS: Final = "127.0.0.1:7420"
DEFAULT_FINISH_TIMEOUT_S: Final = 30.0
DEFAULT_SPOOL_BYTES_MAX: Final = 8 * 1024**3
DEFAULT_SYSTEM_METRICS_INTERVAL_S: Final = 15.0
SYSTEM_METRICS_INTERVAL_MIN_S: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to reach the gateway and where to spool.

    Attributes:
        address: `host:port` for plain text, `https://host:port` for TLS.
        token: bearer token; empty: none.
        tls_ca: PEM file of the authorities to trust instead of the system's.
        workspace: empty: the token's, or `default`.
        spool_dir: directory that holds the spools of all runs.
        spool_bytes_max: bytes of unacknowledged records in one writer's spool;
            above it, log calls are dropped and counted.
        mode: `online`, `offline` (spool only; send later by `headrace sync`) or
            `disabled` (nothing at all).
        strict: log calls raise what they otherwise warn about.
        finish_timeout_s: how long `finish` and interpreter exit wait for the
            last acknowledgement.
        quiet: no line on standard error when a run starts and ends; warnings stay.
        system_metrics: whether the sender samples the machine.
        system_metrics_interval_s: how often, at least 0.1.
        console: whether standard output and error are kept as an artifact.
    """

    address: str = DEFAULT_ADDRESS
    token: str = ""
    tls_ca: str = ""
    workspace: str = ""
    spool_dir: Path
    spool_bytes_max: int = DEFAULT_SPOOL_BYTES_MAX
    mode: Mode = "online"
    strict: bool = False
    finish_timeout_s: float = DEFAULT_FINISH_TIMEOUT_S
    quiet: bool = False
    system_metrics: bool = True
    system_metrics_interval_s: float = DEFAULT_SYSTEM_METRICS_INTERVAL_S
    console: bool = False

    def environment(self) -> dict[str, str]:
        """The variables that make another process load these settings (the sender's)."""
        return {
            "HEADRACE_ADDRESS": self.address,
            "HEADRACE_TOKEN": self.token,
            "HEADRACE_TLS_CA": self.tls_ca,
            "HEADRACE_WORKSPACE": self.workspace,
            "HEADRACE_SPOOL_DIR": str(self.spool_dir),
            "HEADRACE_SPOOL_BYTES_MAX": str(self.spool_bytes_max),
        }


def load_settings(
    environ: Mapping[str, str] | None = None,
    *,
    address: str | None = None,
    token: str | None = None,
    tls_ca: str | None = None,
    workspace: str | None = None,
    spool_dir: str | os.PathLike[str] | None = None,
    spool_bytes_max: int | None = None,
    mode: str | None = None,
    strict: bool | None = None,
    finish_timeout_s: float | None = None,
    quiet: bool | None = None,
    system_metrics: bool | None = None,
    system_metrics_interval_s: float | None = None,
    console: bool | None = None,
) -> Settings:
    """Arguments win over the environment, the environment over what `headrace login` stored.

    The stored token, authorities and workspace count only for the stored address.

    Raises:
        ConfigurationError: names the argument or variable.
    """
    variables = os.environ if environ is None else environ

    def text(value: str | None, name: str, default: str = "") -> str:
        return value if value is not None else variables.get(f"HEADRACE_{name}", default)

    login = read_login(login_path(variables))
    chosen_address = parse_address(text(address, "ADDRESS") or login.address or DEFAULT_ADDRESS)
    if chosen_address != login.address:
        login = Login()
    chosen_mode = text(mode, "MODE", "online")
    if chosen_mode not in get_args(Mode):
        raise ConfigurationError(
            f"mode (HEADRACE_MODE) is {chosen_mode!r}; it must be one of {get_args(Mode)}"
        )
    interval_s = _number(
        system_metrics_interval_s,
        variables,
        "SYSTEM_METRICS_INTERVAL_S",
        DEFAULT_SYSTEM_METRICS_INTERVAL_S,
    )
    if interval_s < SYSTEM_METRICS_INTERVAL_MIN_S:
        raise ConfigurationError(
            f"system_metrics_interval_s (HEADRACE_SYSTEM_METRICS_INTERVAL_S) is {interval_s}; it "
            f"must be at least {SYSTEM_METRICS_INTERVAL_MIN_S} (system_metrics=False turns it off)"
        )
    directory = text(os.fspath(spool_dir) if spool_dir is not None else None, "SPOOL_DIR")
    return Settings(
        address=chosen_address,
        token=text(token, "TOKEN", login.token),
        tls_ca=_absolute(text(tls_ca, "TLS_CA", login.tls_ca)),
        workspace=text(workspace, "WORKSPACE", login.workspace),
        spool_dir=Path(_absolute(directory)) if directory else default_spool_dir(),
        spool_bytes_max=int(
            _number(spool_bytes_max, variables, "SPOOL_BYTES_MAX", DEFAULT_SPOOL_BYTES_MAX)
        ),
        mode=chosen_mode,  # type: ignore[arg-type]  # checked above
        strict=_flag(strict, variables, "STRICT"),
        finish_timeout_s=_number(
            finish_timeout_s, variables, "FINISH_TIMEOUT_S", DEFAULT_FINISH_TIMEOUT_S
        ),
        quiet=_flag(quiet, variables, "QUIET"),
        system_metrics=_flag(system_metrics, variables, "SYSTEM_METRICS", default=True),
        system_metrics_interval_s=interval_s,
        console=_flag(console, variables, "CONSOLE"),
    )


def default_spool_dir() -> Path:
    """The per-user state directory of the platform."""
    import platformdirs  # noqa: PLC0415 - only where no directory is given

    return platformdirs.user_state_path("headrace", appauthor=False) / "spool"


def _absolute(path: str) -> str:
    """What a path means from elsewhere too: a sender's working directory is the root."""
    return str(Path(path).expanduser().absolute()) if path else ""


def parse_address(value: str) -> str:
    """`host:port`, with or without `https://` (or `http://`, which is dropped).

    Raises:
        ConfigurationError: no port, or no host.
    """
    bare = value.removeprefix("http://")
    host, separator, port = bare.removeprefix("https://").rstrip("/").rpartition(":")
    if bare.startswith(("unix:", "dns:")):
        return bare
    if not separator or not host or not port.isdigit():
        raise ConfigurationError(
            f"address (HEADRACE_ADDRESS) is {value!r}; it must be host:port or https://host:port"
        )
    return bare.rstrip("/")


def _flag(
    value: bool | None, variables: Mapping[str, str], name: str, *, default: bool = False
) -> bool:
    if value is not None:
        return value
    text = variables.get(f"HEADRACE_{name}", "").lower()
    if not text:
        return default
    if text in {"0", "false", "no", "off"}:
        return False
    if text in {"1", "true", "yes", "on"}:
        return True
    raise ConfigurationError(f"HEADRACE_{name} is {text!r}; it must be true or false")


def _number(value: float | None, variables: Mapping[str, str], name: str, default: float) -> float:
    text = variables.get(f"HEADRACE_{name}", "")
    try:
        number = value if value is not None else float(text) if text else default
    except ValueError:
        raise ConfigurationError(f"HEADRACE_{name} is {text!r}; it must be a number") from None
    if not 0 <= number < float("inf"):
        raise ConfigurationError(
            f"{name.lower()} (HEADRACE_{name}) is {number}; it must be zero or positive, and finite"
        )
    return number
