"""The server's certificate, loaded again when its file changes."""

from __future__ import annotations

import ssl
import time
from pathlib import Path

from hopaas_p2p.errors import ConfigurationError


class Certificate:
    """A certificate and its key, as they are in their files now.

    Raises:
        ConfigurationError: the files cannot be read, or do not belong together.

    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self._files = (certificate, key)
        self._seen = self._stamp()
        self.context = self._load()
        self.expires = _expiry(certificate, self.context)
        """When it expires, in seconds since 1970."""

    @property
    def days_left(self) -> float:
        """Until it expires; negative when it has."""
        return (self.expires - time.time()) / 86400.0

    def reload(self) -> bool:
        """Load the files again if they have changed; returns whether they had. On an error the old ones stay in use.

        Raises:
            ConfigurationError: the new files cannot be used.

        """
        stamp = self._stamp()
        if stamp == self._seen:
            return False
        self._seen = stamp
        context = self._load()
        self.expires = _expiry(self._files[0], context)
        self.context = context
        return True

    def _stamp(self) -> tuple[tuple[int, int, int], ...]:
        try:
            found = [path.stat() for path in self._files]
        except OSError as error:
            raise ConfigurationError(f"{error.filename}: {error.strerror}") from None
        return tuple((one.st_mtime_ns, one.st_size, one.st_ino) for one in found)

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        context.num_tickets = 0  # nobody resumes a session: a peer stays connected for hours
        try:
            context.load_cert_chain(*self._files, password=b"")  # instead of asking for it
        except (OSError, ssl.SSLError) as error:
            why = (error.reason or "not readable") if isinstance(error, ssl.SSLError) else error.strerror
            raise ConfigurationError(
                f"certificate {self._files[0]} with key {self._files[1]}: {why}. Both must be PEM, the key must "
                "belong to the certificate, and have no passphrase"
            ) from None
        return context


def _expiry(file: Path, server: ssl.SSLContext) -> float:
    """When the certificate expires, as a client sees it that trusts just this one: a handshake in memory."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    client.load_verify_locations(file)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    client_side = client.wrap_bio(back, there, server_hostname="any")
    server_side = server.wrap_bio(there, back, server_side=True)
    for step in (client_side, server_side, client_side):
        try:
            step.do_handshake()
        except ssl.SSLCertVerificationError as error:
            if "expired" in error.verify_message:
                return 0.0
            raise ConfigurationError(f"certificate {file}: {error.verify_message}") from None
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            raise ConfigurationError(f"certificate {file}: {error.reason}") from None
    certificate = client_side.getpeercert() or {}
    return ssl.cert_time_to_seconds(str(certificate["notAfter"]))
