"""The certificate authorities to trust, and TLS as a client, in the same way for every connection of this program.

If TLS is requested, it is mandatory, and no switch skips the verification.
"""

from __future__ import annotations

import errno
import functools
import os
import socket
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hopaas_p2p.errors import ConfigurationError, HopaasError, StoreUnreachable, waits_for
from hopaas_p2p.net.proxies import remaining
from hopaas_p2p.runtime import settings


def authorities(given: str = "", *, aws: bool = False, env: Mapping[str, str] = os.environ) -> str:
    """The file of the certificate authorities to trust: `given`, else HOPAAS_CA_FILE, SSL_CERT_FILE, or certifi's.

    Args:
        given: the file that a URL names.
        aws: whether AWS_CA_BUNDLE counts, too, before SSL_CERT_FILE.
        env: the environment.

    Raises:
        ConfigurationError: there is no such file.

    """
    bundle = env.get("AWS_CA_BUNDLE") if aws else None
    path = given or settings.ca_file(env) or bundle or env.get("SSL_CERT_FILE")
    if not path:
        import certifi

        return certifi.where()
    if not Path(path).is_file():
        raise ConfigurationError(f"there is no file {path} with certificate authorities; check HOPAAS_CA_FILE")
    return path


def client_context(file: str = "", *, alpn: str = "http/1.1", check_hostname: bool = True) -> ssl.SSLContext:
    """A context that verifies a server by the authorities in this file, by default those of `authorities()`.

    The context is shared. Do not change it, and do not pass it to a library that does, such as urllib3; see
    `new_context`.

    Raises:
        ConfigurationError: the file does not exist, or contains no authorities.

    """
    path = authorities(file)
    return _cached(path, Path(path).stat().st_mtime_ns, alpn, check_hostname)


@functools.lru_cache(maxsize=8)
def _cached(path: str, _changed: int, alpn: str, check_hostname: bool) -> ssl.SSLContext:
    return new_context(path, alpn, check_hostname)


def new_context(path: str, alpn: str = "http/1.1", check_hostname: bool = True) -> ssl.SSLContext:
    """Like `client_context`, but not shared."""
    try:
        with waits_for(path):
            context = ssl.create_default_context(cafile=path)
    except (ssl.SSLError, OSError):
        raise ConfigurationError(f"{path} contains no certificate authorities; check HOPAAS_CA_FILE") from None
    context.sslsocket_class = _ConnectedSocket
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = check_hostname
    context.set_alpn_protocols([alpn])
    return context


def secure(
    plain: socket.socket, host: str, *, deadline: float, context: ssl.SSLContext | None = None, hint: str = ""
) -> ssl.SSLSocket:
    """TLS over this connection, with the host's certificate verified. On an error the caller closes `plain`.

    Args:
        plain: the connection.
        host: the name that the certificate must be for.
        deadline: when to give up, by `time.monotonic()`.
        context: verifies the server; by default that of `client_context`.
        hint: words to add to the message if the connection breaks.

    Raises:
        ConfigurationError: the certificate is for another host, its authority is unknown, or the server does not speak
            TLS.
        StoreUnreachable: the certificate has expired or is not yet valid, or the connection broke.

    """
    try:
        context = context or client_context()
        plain.settimeout(remaining(deadline))
        return context.wrap_socket(plain, server_hostname=host)
    except ssl.SSLCertVerificationError as error:
        raise _untrusted(host, error.verify_message) from None
    except ssl.SSLError as error:
        if error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNSUPPORTED_PROTOCOL", "NO_PROTOCOLS_AVAILABLE"):
            raise ConfigurationError(
                f"{host} does not speak TLS (1.2 or newer) on this port, and nothing is sent without it. "
                "Check host and port: something else may listen there"
            ) from None
        why = (error.reason or str(error)).lower().replace("_", " ")
        raise StoreUnreachable(f"TLS with {host} failed: {why}{hint}") from None
    except TimeoutError:
        raise StoreUnreachable(f"{host} accepts the connection and then sends nothing{hint}") from None
    except OSError as error:
        raise StoreUnreachable(f"TLS with {host} failed: {error.strerror or error}{hint}") from None


def _untrusted(host: str, why: str) -> HopaasError:
    if "expired" in why:
        return StoreUnreachable(
            f"the certificate of {host} has expired. Its administrator has to renew it, and nothing is sent until "
            "then; results wait in the spool. If the date on this node is wrong, correct it"
        )
    if "not yet valid" in why:
        return StoreUnreachable(f"the certificate of {host} is not valid yet; correct this node's date if it is wrong")
    if "match" in why:
        return ConfigurationError(
            f"the certificate of {host} is for another name ({why}). Use the name that it is for, or have one issued "
            "for this name"
        )
    return ConfigurationError(
        f"the certificate of {host} cannot be trusted: {why}. If your site has its own authority, set "
        "HOPAAS_CA_FILE to its certificate; otherwise the connection may be intercepted"
    )


def days_left(certificate: Mapping[str, Any]) -> float:
    """Days until a certificate, in `getpeercert`'s form, expires."""
    return (ssl.cert_time_to_seconds(str(certificate["notAfter"])) - time.time()) / 86400.0


class _ConnectedSocket(ssl.SSLSocket):
    """A TLS socket that exists only while it is connected.

    `wrap_socket` first asks for the peer's address. If the connection has just been reset, the standard class either
    leaks the descriptor or returns a socket without TLS.
    """

    def getpeername(self) -> Any:
        try:
            return super().getpeername()
        except OSError as error:
            self.close()
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)) from error
