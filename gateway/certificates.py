"""TLS for the gRPC server, with certificates that may be replaced while it runs.

gRPC asks for the certificate at every handshake. It is read again when a file
changed, and taken only if the pair loads: a half-written or wrong pair leaves
the last good one in use, and is said in the log once.
"""

import ssl
from pathlib import Path

import grpc
import structlog

_LOG = structlog.get_logger(__name__)

_Version = tuple[tuple[int, int, int], ...]


def server_credentials(
    certificate: Path, key: Path, client_ca: Path | None
) -> grpc.ServerCredentials:
    """Return credentials that follow the files.

    Args:
        certificate: PEM chain, the server's own first.
        key: PEM private key.
        client_ca: PEM authorities whose certificates clients must present; None asks for none.

    Raises:
        OSError: the files cannot be read, or are no pair.
    """
    source = _Source(certificate, key, client_ca)
    return grpc.dynamic_ssl_server_credentials(
        source.load(),
        source.fetch,  # type: ignore[arg-type]  # None keeps the last; the stubs omit it
        require_client_authentication=client_ca is not None,
    )


class _Source:
    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        self._certificate = certificate
        self._key = key
        self._client_ca = client_ca
        self._seen: _Version = ()

    def load(self) -> grpc.ServerCertificateConfiguration:
        """Read the files; raise OSError (ssl.SSLError is one) when they are no pair."""
        self._seen = self._version()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._certificate, self._key)
        authorities = None
        if self._client_ca is not None:
            context.load_verify_locations(self._client_ca)
            authorities = self._client_ca.read_bytes()
        pair = (self._key.read_bytes(), self._certificate.read_bytes())
        return grpc.ssl_server_certificate_configuration([pair], authorities)

    def fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """Return the new pair, or None to keep the last; called by gRPC at each handshake."""
        try:
            if self._version() == self._seen:
                return None
            configuration = self.load()
        except OSError as error:
            _LOG.error("certificate kept: the new one cannot be used", error=str(error))
            return None
        _LOG.info("certificate replaced", file=str(self._certificate))
        return configuration

    def _version(self) -> _Version:
        files = (self._certificate, self._key, self._client_ca)
        stats = [file.stat() for file in files if file is not None]
        return tuple((found.st_ino, found.st_mtime_ns, found.st_size) for found in stats)
