"""Turns an S3 server's refusals into our errors, by status and code; each error says what to do."""

from __future__ import annotations

from typing import Final

from hopaas_p2p.errors import ConfigurationError, Denied, HopaasError, StoreUnreachable
from hopaas_p2p.stores.s3.address import Address

PASSING: Final = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 507, 509, 529})
"""Statuses that mean "try later". The request may have been carried out."""
RUN_OUT: Final = frozenset(
    {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken", "InvalidAccessKeyId"}
)
"""Codes that mean "not with these keys, perhaps with newer ones"."""
CLOCK: Final = frozenset({"RequestTimeTooSkewed", "RequestExpired", "RequestInTheFuture"})
"""Codes that mean that the clocks differ."""
AWAY: Final = frozenset({502, 503, 504})
"""Statuses that mean that the server is not ready or, with the code SlowDown, busy."""
_MANGLED: Final = frozenset({"RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch", "SlowDown"})


def unreachable(address: Address, error: Exception) -> HopaasError:
    """The error for a missing or incomplete answer."""
    endpoint = address.endpoint
    reason = f"{type(error).__name__}: {getattr(error, 'reason', None) or error}"[:300]
    if "CERTIFICATE_VERIFY_FAILED" in reason:
        return ConfigurationError(
            f"{endpoint}: no authority that this machine trusts signed its certificate. "
            "If your site has its own authority, set HOPAAS_CA_FILE to its certificate"
        )
    if "WRONG_VERSION_NUMBER" in reason:
        return ConfigurationError(
            f"{endpoint} does not speak TLS on this port. If it should, correct the port; otherwise "
            "write endpoint=http://HOST:PORT in the URL"
        )
    if "failed: 407" in reason:  # 407 alone may be part of an lsn
        return ConfigurationError(
            f"the proxy on the way to {endpoint} requires a login: set HTTPS_PROXY=http://user:password@host:port"
        )
    return StoreUnreachable(
        f"{endpoint} cannot be reached ({_plainly(error) or reason}). Nothing acknowledged is lost. "
        "To find out why: hopaas-p2p doctor URL"
    )


def _plainly(error: Exception) -> str | None:
    """The first operating system error behind a urllib3 error, in words; None if there is none."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, TimeoutError):
            return "no answer in time"
        if isinstance(seen, OSError) and (said := seen.strerror or str(seen)):
            return said
        seen = seen.__cause__ or seen.__context__
    return None


def refusal(
    address: Address, status: int, code: str, what: str, *, conditional: bool = False, known: bool = False
) -> HopaasError:
    """The error for an unsuccessful answer.

    Args:
        address: the bucket's address.
        status, code: the HTTP status, and the code in the answer's body.
        what: what the request should do.
        conditional: whether it was a write with a condition.
        known: whether this process has used the bucket, so that a missing bucket counts as temporary. A server that
            starts with a new disk or pool answers like that.

    """
    where = f"{address.endpoint}, bucket {address.bucket!r}"
    said = f"HTTP {status}{' ' + code if code else ''}"
    if code in CLOCK:
        return ConfigurationError(
            f"{where}: the server refuses requests because this machine's clock is wrong; set it ({said})"
        )
    if code in RUN_OUT or code == "SignatureDoesNotMatch" or status == 401:
        return ConfigurationError(f"{where}: the keys are invalid or expired; renew them ({said})")
    if status in PASSING or code in _MANGLED:
        return StoreUnreachable(f"{where}: try again later ({said}). Nothing acknowledged is lost.")
    if code == "NoSuchBucket" and known:
        return StoreUnreachable(f"{where}: the bucket is gone. If it was removed, restore it")
    if code == "NoSuchBucket":
        return ConfigurationError(f"{where}: there is no such bucket; create it, or correct the URL")
    if status == 403:
        return Denied(
            f"{where}: these keys may not {what} ({said}). To print the policy that a key needs: "
            "hopaas-p2p admin s3-policy"
        )
    if status in (301, 307, 308) or code in ("AuthorizationHeaderMalformed", "IllegalLocationConstraintException"):
        return ConfigurationError(f"{where}: the bucket is in another region; add ?region=… to the URL ({said})")
    if status in (405, 501) and conditional:
        return ConfigurationError(
            f"{where}: the server does not support conditional writes, which a log needs ({said})"
        )
    return ConfigurationError(f"{where}: the server refused to {what} ({said}); check that it is an S3 server")
