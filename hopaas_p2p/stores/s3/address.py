"""Reads and writes URLs of buckets: `s3://bucket/prefix?endpoint=https://s3.example.org&region=eu-1&style=path`.

Values missing from the URL come from the variables that every S3 tool knows (`AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`,
`AWS_REGION`, `AWS_DEFAULT_REGION`). The normal form contains all values, so that another process opens the same place.
Keys are never part of a URL.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Final, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from hopaas_p2p.errors import ConfigurationError
from hopaas_p2p.net.proxies import is_loopback

_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PREFIX: Final = re.compile(r"[A-Za-z0-9_.=-]+(/[A-Za-z0-9_.=-]+)*")
_HOST: Final = re.compile(r"[\w.:%-]+")  # without a comma, which separates the hosts of a joined study
_REGION: Final = re.compile(r"[A-Za-z0-9_-]{1,63}")
_OPTIONS: Final = ("endpoint", "region", "style", "insecure")
_EXAMPLE: Final = "s3://bucket/prefix?endpoint=https://s3.example.org&region=eu-1"


class Address(NamedTuple):
    """A bucket, and the part of it that forms the store."""

    bucket: str
    prefix: str
    """Without a leading or trailing slash; may be empty."""
    endpoint: str
    """`https://host[:port]`."""
    region: str
    virtual: bool
    """Whether the bucket is part of the host name."""
    insecure: bool = False
    """Whether another machine may be contacted without TLS."""

    @property
    def url(self) -> str:
        """The normal form: without secrets, usable anywhere to open the store again."""
        path = f"/{quote(self.prefix)}" if self.prefix else ""
        options = {"endpoint": self.endpoint, "region": self.region}
        if self.virtual != is_aws(self.endpoint):
            options["style"] = "virtual" if self.virtual else "path"
        if self.insecure:
            options["insecure"] = "true"
        return f"s3://{self.bucket}{path}?{urlencode(options, safe=':/')}"

    @property
    def root(self) -> str:
        """The beginning of all keys of the store."""
        return f"{self.prefix}/v1/" if self.prefix else "v1/"


def is_aws(endpoint: str) -> bool:
    """Whether this endpoint is Amazon's, whose hosts use virtual-host style, and whose STS is on other hosts."""
    return (urlsplit(endpoint).hostname or "").endswith((".amazonaws.com", ".amazonaws.com.cn"))


def parse(url: str, env: Mapping[str, str] = os.environ) -> Address:
    """The address in a URL.

    Raises:
        ConfigurationError: the URL is not understood, or holds a key; the message says what to write.

    """
    try:
        parts = urlsplit(url)
    except ValueError:  # a bracket that does not close; a message with the URL could show a key
        raise ConfigurationError(f"this s3:// URL cannot be parsed; write one such as {_EXAMPLE}") from None
    if "@" in parts.netloc or (":" in parts.netloc and "@" in url):  # a secret key may contain a slash
        raise ConfigurationError(
            "keys do not belong in an s3:// URL, because every process list would show them. "
            "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    unknown = sorted(set(options) - set(_OPTIONS))
    if unknown:
        raise ConfigurationError(f"{unknown[0]!r} is not an option of an s3:// URL; choose from {', '.join(_OPTIONS)}")
    bucket, prefix = parts.netloc, unquote(parts.path).strip("/")
    if not _BUCKET.fullmatch(bucket):
        raise ConfigurationError(f"{bucket!r} is not a bucket name; write {_EXAMPLE}")
    if bucket.endswith("--x-s3"):
        raise ConfigurationError(
            f"{bucket} is a directory bucket (S3 Express One Zone), which lists keys in no order; a log needs them in "
            "order. Use a general purpose bucket"
        )
    if prefix and (not _PREFIX.fullmatch(prefix) or {".", ".."} & set(prefix.split("/"))):
        raise ConfigurationError(f"the prefix {prefix!r} may contain only letters, digits, '_', '-', '.', '=' and '/'")
    region = options.get("region") or env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION") or "us-east-1"
    if not _REGION.fullmatch(region):
        raise ConfigurationError(f"{region!r} is not a region; write one such as eu-central-1")
    endpoint = _endpoint(
        options.get("endpoint") or env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL"), region
    )
    style = options.get("style") or ("virtual" if is_aws(endpoint) else "path")
    if style not in ("path", "virtual"):
        raise ConfigurationError(f"style={style!r}: an s3:// URL takes style=path or style=virtual")
    insecure = options.get("insecure", "false")
    if insecure not in ("true", "false"):
        raise ConfigurationError(f"insecure={insecure!r}: an s3:// URL takes insecure=true or insecure=false")
    if (
        endpoint.startswith("http://")
        and (insecure == "false" or is_aws(endpoint) or endpoint.endswith(":443"))
        and not is_loopback(urlsplit(endpoint).hostname or "")
    ):
        raise ConfigurationError(
            f"the endpoint {endpoint} is on another machine and has no TLS, so anybody in between can read and "
            "change the store; write https://, or add insecure=true to the URL if the server and the "
            "network are your own"
        )
    return Address(bucket, prefix, endpoint, region, style == "virtual", insecure == "true")


def _endpoint(given: str | None, region: str) -> str:
    if not given:
        return f"https://s3.{region}.amazonaws.com"
    if "@" in given:  # even after a slash, which a secret key may contain
        raise ConfigurationError("keys do not belong in an endpoint; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    try:
        parts = urlsplit(given if "://" in given else f"https://{given}")
        host, port = parts.hostname or "", parts.port
        if parts.scheme not in ("http", "https") or not _HOST.fullmatch(host) or parts.path.strip("/") or parts.query:
            raise ValueError
    except ValueError:  # raised also for an open bracket and a port that is not a number
        raise ConfigurationError(
            f"the endpoint {given!r} cannot be parsed; write one such as https://s3.example.org:9000"
        ) from None
    default = {"http": 80, "https": 443}[parts.scheme]
    host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{host}" + (f":{port}" if port not in (None, default) else "")
