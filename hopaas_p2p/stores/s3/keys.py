"""Finds the signing keys where every S3 tool looks for them, and fetches them again before they expire.

The sources, in order: `AWS_ACCESS_KEY_ID` and its companions; a web identity (`AWS_WEB_IDENTITY_TOKEN_FILE`,
`AWS_ROLE_ARN`); the profile `AWS_PROFILE` of `~/.aws/credentials` or `~/.aws/config`; a container's credentials; the
machine's metadata. Files and services are read again when their keys expire or are refused, so keys may be renewed
during a run. `hopaas_p2p.runtime.credentials` reads them, and checks whether they may sign requests to the bucket's
server.

Requests to services, and their answers, are never shown. The SDK's own providers are not used. They put web identity
tokens into URLs, which error messages then show. They also create their own pools without a proxy, and can stall for
six seconds if there is no metadata service.
"""

from __future__ import annotations

import contextlib
import datetime
import html
import json
import math
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, NoReturn
from urllib.parse import urlencode

import urllib3

from hopaas_p2p.errors import ConfigurationError, StoreUnreachable
from hopaas_p2p.net.proxies import ServerAddress, is_loopback, server_of
from hopaas_p2p.runtime import credentials
from hopaas_p2p.stores.s3 import http
from hopaas_p2p.stores.s3.address import Address, is_aws

_MARGIN: Final = 120.0  # seconds before expiry at which keys are renewed
_METADATA: Final = "http://169.254.169.254"
_LINK_LOCAL: Final = ("169.254.169.254", "fd00:ec2::254", "169.254.170.2", "169.254.170.23", "fd00:ec2::23")
"""Addresses of the services of EC2, ECS and EKS, which Amazon's own tools also use without TLS."""
_LARGEST_ANSWER: Final = 64 << 10  # bytes of an answer; one with keys has about two thousand
_METADATA_TIMEOUT: Final = 1.0  # seconds; a metadata service is on the same machine, or does not exist
_ELEMENT: Final = re.compile("<(AccessKeyId|SecretAccessKey|SessionToken|Expiration)>([^<]*)<")


class Keys(NamedTuple):
    """An access key that is never shown. Its attributes have the names that the SDK's signer expects."""

    access_key: str
    secret_key: str
    session_token: str | None = None
    expires: float = math.inf
    """Seconds since 1970."""

    def __repr__(self) -> str:
        return "Keys(***)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("keys are not pickled; other processes find their own")


class Chain:
    """The first source that has keys; it is read again when they expire, or when the server refuses them."""

    def __init__(self, address: Address, *, env: Mapping[str, str] = os.environ) -> None:
        self._address, self._env = address, env
        self._keys: Keys | None = None
        self._lock = threading.Lock()
        self._on_machine = None if env.get("AWS_EC2_METADATA_DISABLED", "").lower() != "true" else False
        """Whether a metadata service has answered; False if there is none, so it is not asked again."""
        self.clock = time.time
        """Seconds since 1970, by the server's clock."""

    def after_fork(self) -> None:
        """In a forked child, renew the lock, which a thread of the parent may have held, and forget the keys."""
        self._lock, self._keys = threading.Lock(), None

    def retrieve(self) -> Keys:
        """The current keys.

        Raises:
            ConfigurationError: there are no keys, a source is misconfigured, or they may not be used for the bucket's
                server.
            StoreUnreachable: a service that should provide keys does not answer.

        """
        with self._lock:
            if self._keys is None or self._keys.expires - _MARGIN < self.clock():
                self._keys = self._find()
            return self._keys

    def renew(self, refused: Keys) -> bool:
        """Look again, because the server refused these keys; return whether there are different ones now."""
        with self._lock:
            self._keys = self._find()
            now = self._keys.access_key, self._keys.session_token
            return now != (refused.access_key, refused.session_token)

    def _find(self) -> Keys:
        bucket, env = [server_of(self._address.endpoint)], self._env
        places: tuple[Callable[[], tuple[Any, ...] | None], ...] = (
            lambda: credentials.access_key(bucket, env),
            self._web_identity,
            lambda: credentials.profile_key(bucket, env),
            self._container,
            self._machine,
        )
        for find in places:
            if (found := find()) is not None:
                _check_sendable(found[0], found[2])
                if not found[1].isprintable():  # bytes that are not UTF-8, or half a surrogate pair
                    raise ConfigurationError("the secret of the key for the bucket is not one line of text")
                return Keys(*found)
        raise ConfigurationError(
            "no keys for the bucket. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. Searched: the environment; web "
            "identity; the profile in ~/.aws/credentials; container credentials; instance metadata"
        )

    def _web_identity(self) -> Keys | None:
        """Keys from an STS, Amazon's or the S3 server's own, in exchange for a token of an identity provider."""
        address, env = self._address, self._env
        own = address.endpoint
        if is_aws(own):
            own = f"https://sts.{address.region}.amazonaws.com{'.cn' * own.endswith('.cn')}"
        endpoint = env.get("AWS_ENDPOINT_URL_STS") or own
        token = credentials.identity([server_of(endpoint)], env)
        if token is None:
            return None
        if _place(endpoint) != _place(address.endpoint):  # the bucket's URL says whether TLS is needed there
            _check_private(endpoint)
        credentials.may_sign([server_of(address.endpoint)], env)
        form = {
            "Action": "AssumeRoleWithWebIdentity",
            "Version": "2011-06-15",
            "WebIdentityToken": token.reveal(),
            "RoleSessionName": env.get("AWS_ROLE_SESSION_NAME") or f"hopaas-{secrets.token_hex(4)}",
        }
        if env.get("AWS_ROLE_ARN"):
            form["RoleArn"] = env["AWS_ROLE_ARN"]
        body = urlencode(form)  # in the body, not in the URL, where proxies would log it
        answer = _ask("POST", endpoint, body=body, headers={"Content-Type": "application/x-www-form-urlencoded"})
        keys = _keys_of({name: html.unescape(text) for name, text in _ELEMENT.findall(answer)})
        if keys is None:
            raise ConfigurationError(f"{_shown(endpoint)} gave no keys for the token in AWS_WEB_IDENTITY_TOKEN_FILE")
        return keys

    def _container(self) -> Keys | None:
        """Keys from the service of a container platform: AWS_CONTAINER_CREDENTIALS_FULL_URI or …_RELATIVE_URI."""
        service = credentials.container(self._env)
        if service is None:
            return None
        credentials.may_sign([server_of(self._address.endpoint)], self._env)
        url, token = service[0], service[1].reveal()
        _check_private(url)
        return _keys_of(_ask("GET", url, headers={"Authorization": token} if token else {}, direct=True))

    def _machine(self) -> Keys | None:
        """Keys from the metadata service of a cloud's machine (IMDSv2)."""
        if self._on_machine is False:
            return None
        credentials.may_sign([server_of(self._address.endpoint)], self._env)
        base = self._env.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", _METADATA).rstrip("/")
        _check_private(base)
        roles = f"{base}/latest/meta-data/iam/security-credentials/"
        lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": "21600"}
        try:
            pass_ = {"X-aws-ec2-metadata-token": _ask("PUT", f"{base}/latest/api/token", headers=lifetime, direct=True)}
        except (StoreUnreachable, ConfigurationError):
            if self._on_machine:
                raise
            self._on_machine = False
            return None
        self._on_machine = True
        role = _ask("GET", roles, headers=pass_, direct=True).split("\n")[0].strip()
        return _keys_of(_ask("GET", roles + role, headers=pass_, direct=True)) if role else None


def _check_sendable(*texts: str | None) -> None:
    """Refuse a string that cannot be in a header, because the HTTP library's error message would show it."""
    if not all(isinstance(text, str) and text.isascii() and text.isprintable() for text in texts if text is not None):
        raise ConfigurationError("the id of a key for the bucket, or a token, is not one line of ASCII text")


def _place(url: str) -> tuple[str, str, int] | None:
    """(scheme, host, port) as the library that sends the request reads them; None if it cannot."""
    try:
        parts = urllib3.util.parse_url(url)
    except urllib3.exceptions.LocationParseError:
        return None
    scheme, host = parts.scheme or "", (parts.host or "").strip("[]")
    return (scheme, host, parts.port or urllib3.connectionpool.port_by_scheme.get(scheme, 0)) if host else None


def _shown(url: str) -> str:
    """A service's URL for messages, without its path, which may be a secret: on ECS, knowing it gives the keys."""
    scheme, host, port = _place(url) or ("", "", 0)
    return f"{scheme}://{ServerAddress(host, port)}" if host else "the URL of a service"


def _check_private(url: str) -> None:
    """Refuse a service on another machine without TLS, because credentials are sent to it and come from it."""
    scheme, host, _ = _place(url) or ("", "", 0)
    if not host or not (scheme == "https" or is_loopback(host) or host in _LINK_LOCAL):
        raise ConfigurationError(
            f"the keys for the bucket would come from {_shown(url)}, which is not an https:// URL. Without TLS, "
            "anybody in between could read them"
        )


def _ask(method: str, url: str, *, body: str | None = None, headers: dict[str, str], direct: bool = False) -> str:
    """One request to a service that provides keys. The request and its answer are never shown."""
    wait, service = _METADATA_TIMEOUT if direct else http.READ, _shown(url)
    _check_sendable(*headers.values())
    try:
        with http.pool(url, read=wait, direct=direct) as pool:
            asked = pool.urlopen(method, url, body=body, headers=headers, redirect=False, preload_content=False)
            response = http.whole(asked, _LARGEST_ANSWER)
            status, text = response.status, (response.data or b"").decode(errors="replace")
    except urllib3.exceptions.HTTPError:
        raise StoreUnreachable(f"{service}, which provides the keys for the bucket, does not answer") from None
    if status >= 500 or status == 429:
        raise StoreUnreachable(f"{service}, which provides the keys for the bucket, answered HTTP {status}")
    if status != 200:
        why = f"HTTP {status}. Check that the token is still valid"
        raise ConfigurationError(f"{service} refused to provide keys for the bucket: {why}")
    return text


def _keys_of(said: dict[str, Any] | str) -> Keys | None:
    """The keys in a service's answer, which is a dictionary or JSON text; None if the answer contains none."""
    with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
        found = json.loads(said) if isinstance(said, str) else said
        key, secret, expires = found["AccessKeyId"], found["SecretAccessKey"], math.inf
        with contextlib.suppress(ValueError, TypeError, KeyError):
            end = datetime.datetime.fromisoformat(found["Expiration"])
            expires = end.replace(tzinfo=end.tzinfo or datetime.UTC).timestamp()
        if key and secret:
            return Keys(str(key), str(secret), found.get("SessionToken") or found.get("Token") or None, expires)
    return None
