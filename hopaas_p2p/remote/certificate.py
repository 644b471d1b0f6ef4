"""The server's certificate, loaded again when its file changes."""

from __future__ import annotations

import ssl
import stat
import time
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
        self.context, self.expires = self._load()
        """The TLS context of the server; when the certificate expires, in seconds since 1970."""

    @property
    def days_left(self) -> float:
        """Days until the certificate expires; negative if it has expired."""
        return (self.expires - time.time()) / 86400.0

    def reload(self) -> bool:
        """Load the files again if they have changed; return whether they had. After an error, the old ones stay in use.

        Raises:
            ConfigurationError: the new files cannot be used.

        """
        stamp = self._stamp()
        if stamp == self._seen:
            return False
        self._seen = stamp
        self.context, self.expires = self._load()
        return True

    def _stamp(self) -> tuple[tuple[int, int, int], ...]:
        try:
            found = [path.stat() for path in self._files]
        except OSError as error:
            raise ConfigurationError(f"{error.filename}: {error.strerror}") from None
        for path, one in zip(self._files, found, strict=True):
            if not stat.S_ISREG(one.st_mode):
                raise ConfigurationError(f"{path} is not a regular file")
        return tuple((one.st_mtime_ns, one.st_size, one.st_ino) for one in found)

    def _load(self) -> tuple[ssl.SSLContext, float]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        context.num_tickets = 0  # no session resumption, since a peer stays connected for hours
        try:
            context.load_cert_chain(*self._files, password=b"")  # so that OpenSSL does not prompt for one
            said = ssl._ssl._test_decode_cert(str(self._files[0]))  # type: ignore[attr-defined]  # noqa: SLF001
        except (OSError, ssl.SSLError) as error:
            why = (error.reason or "not readable") if isinstance(error, ssl.SSLError) else error.strerror
            raise ConfigurationError(
                f"certificate {self._files[0]} with key {self._files[1]}: {why}. Both must be PEM; the key must "
                "belong to the certificate, and have no passphrase"
            ) from None
        return context, ssl.cert_time_to_seconds(said["notAfter"])
