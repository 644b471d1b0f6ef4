"""The server's certificate, loaded again when its file changes."""

from __future__ import annotations

import ssl
from pathlib import Path

from hopaas_p2p.errors import ConfigurationError


class Certificate:
    """A certificate and its key, as currently in their files.

    Raises:
        ConfigurationError: the files cannot be read, or do not belong together.

    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self._files = (certificate, key)
        self._seen = self._stamp()
        self.context = self._load()
        """The TLS context of the server."""

    def reload(self) -> bool:
        """Load the files again if they have changed; returns whether they had. After an error the old ones stay in use.

        Raises:
            ConfigurationError: the new files cannot be used.

        """
        stamp = self._stamp()
        if stamp == self._seen:
            return False
        self._seen = stamp
        self.context = self._load()
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
        context.num_tickets = 0  # no session resumption: a peer stays connected for hours
        try:
            context.load_cert_chain(*self._files, password=b"")  # so that it does not prompt for one
        except (OSError, ssl.SSLError) as error:
            why = (error.reason or "not readable") if isinstance(error, ssl.SSLError) else error.strerror
            raise ConfigurationError(
                f"certificate {self._files[0]} with key {self._files[1]}: {why}. Both must be PEM, the key must "
                "belong to the certificate, and have no passphrase"
            ) from None
        return context
