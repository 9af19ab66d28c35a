"""Reads and changes what a gateway holds: `headrace.Client`.

    client = headrace.Client("127.0.0.1:7420")
    for run in client.search_runs("metrics.loss < 0.3", experiments=["digits"]):
        loss = client.read(run.run_id, keys=["train/loss"], max_points=1_000)["train/loss"]
        plot(loss.step, loss.value)

Calls wait for the gateway while it is away, up to `patience_s`, and raise
GatewayError. A client may be shared by threads, but not be used across a fork.
"""

from typing import TYPE_CHECKING

from headrace.channel import call_metadata
from headrace.experiments import ExperimentMethods
from headrace.exporting import ExportMethods
from headrace.importing import ImportMethods
from headrace.settings import load_settings

if TYPE_CHECKING:
    from headrace.artifacts import Artifacts
    from headrace.transfers import Direct, Transfers


class Client(ExportMethods, ImportMethods, ExperimentMethods):
    """A connection to one gateway. Close it, or use it as a context manager."""

    def __init__(
        self,
        address: str | None = None,
        *,
        token: str | None = None,
        tls_ca: str | None = None,
        workspace: str | None = None,
        patience_s: float = 30.0,
    ) -> None:
        """Prepare; nothing is connected yet.

        Args:
            address: `host:port`, or `https://host:port`; default HEADRACE_ADDRESS,
                else what `headrace login` stored, else 127.0.0.1:7420.
            token: bearer token; default HEADRACE_TOKEN, else the stored one.
            tls_ca: PEM file of the authorities to trust; default HEADRACE_TLS_CA,
                else the system's.
            workspace: default HEADRACE_WORKSPACE, else the token's.
            patience_s: how long a call is tried again while the gateway is away.

        Raises:
            ConfigurationError: the address has no host or port.
        """
        settings = load_settings(address=address, token=token, tls_ca=tls_ca, workspace=workspace)
        super().__init__(settings, patience_s=patience_s)
        self._transfers: dict[Direct, Transfers] = {}

    def close(self) -> None:
        """Close the connection; reads that still run fail."""
        for transfers in self._transfers.values():
            transfers.close()
        super().close()

    def artifacts(self, run_id: str, *, direct: "Direct" = "auto") -> "Artifacts":
        """Return the artifacts of a run: list, download, open, upload, verify, delete.

        Args:
            run_id: the run.
            direct: whether bytes go straight to S3: `auto` those of large files, when
                it can be reached; `always`; `never`.
        """
        from headrace.artifacts import Artifacts  # noqa: PLC0415 - most readers need none
        from headrace.transfers import Transfers  # noqa: PLC0415

        if direct not in self._transfers:
            self._transfers[direct] = Transfers(
                self._channel, metadata=call_metadata(self._settings), direct=direct
            )
        return Artifacts(self._transfers[direct], run_id)
