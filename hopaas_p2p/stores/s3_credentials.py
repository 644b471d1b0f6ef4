"""Which keys to sign with: found where every S3 tool looks for them, and fetched anew before they expire.

In order: `AWS_ACCESS_KEY_ID` and its kin; a web identity (`AWS_WEB_IDENTITY_TOKEN_FILE`, `AWS_ROLE_ARN`); the profile
`AWS_PROFILE` of `~/.aws/credentials` or `~/.aws/config`; a container's credentials; the machine's metadata. Files and
services are asked again when what they gave runs out or is refused, so keys may be renewed in the middle of a run.

The SDK's own providers are not used: they put web identity tokens into URLs, which error messages then show, make
pools of their own that know no proxy, and can stall for six seconds where there is no metadata service.
"""

from __future__ import annotations

import configparser
import datetime
import html
import json
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NoReturn, Protocol
from urllib.parse import urlencode

import urllib3
from minio.credentials.credentials import Credentials
from minio.credentials.providers import Provider

from hopaas_p2p.errors import ConfigurationError, StoreUnreachable
from hopaas_p2p.stores import s3_http
from hopaas_p2p.stores.s3_address import Address

_MARGIN: Final = 120.0  # seconds before their end at which keys are renewed
_METADATA: Final = "http://169.254.169.254"
_CONTAINER: Final = "http://169.254.170.2"
_PATIENCE: Final = 1.0  # seconds; a metadata service is on the same machine, or not there at all


class Keys(Credentials):
    """Credentials that never show themselves."""

    def __repr__(self) -> str:
        return "Keys(***)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("keys are not pickled; other processes find their own")

    def is_expired(self) -> bool:
        return False  # the chain decides, by the server's clock


class Source(Protocol):
    """One place where keys may be."""

    name: str

    def find(self) -> Keys | None:
        """The keys as they are now, or None when this place has none.

        Raises:
            StoreUnreachable: a service that should give them does not answer.
            ConfigurationError: it is set up wrongly.

        """


class Chain(Provider):
    """The first source that has keys; it is asked again when they run out, or when the server refuses them."""

    def __init__(self, sources: list[Source], *, clock: Callable[[], float] = time.time) -> None:
        self._sources = sources
        self._keys: Keys | None = None
        self._lock = threading.Lock()
        self.clock = clock

    def __repr__(self) -> str:
        return f"Chain({', '.join(source.name for source in self._sources)})"

    def copy(self, *, clock: Callable[[], float]) -> Chain:
        """The same sources for a forked child, with a lock of its own."""
        return Chain(self._sources, clock=clock)

    def retrieve(self) -> Keys:
        with self._lock:
            if self._keys is None or self._ending(self._keys):
                self._keys = self._find()
            return self._keys

    def _ending(self, keys: Keys) -> bool:
        end = keys.expiration
        return end is not None and end.replace(tzinfo=datetime.UTC).timestamp() - _MARGIN < self.clock()

    def renew(self, refused: Credentials | None = None) -> bool:
        """Look anew, because the server did not take the keys; whether there are others now."""
        with self._lock:
            before = refused or self._keys
            self._keys = self._find()
            return before is None or self._keys.access_key != before.access_key or _token(self._keys) != _token(before)

    def _find(self) -> Keys:
        for source in self._sources:
            keys = source.find()
            if keys is not None:
                return keys
        looked = "; ".join(source.name for source in self._sources)
        raise ConfigurationError(
            f"no keys for the bucket. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. Looked at: {looked}"
        )


def _token(keys: Credentials) -> str | None:
    return keys.session_token


def chain(address: Address, *, env: Mapping[str, str] = os.environ) -> Chain:
    """Everything there is, in the order of the AWS tools."""
    return Chain([Environment(env), WebIdentity(address, env), Profile(env), Container(env), Machine(env)])


class Environment:
    """AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN."""

    name = "AWS_ACCESS_KEY_ID"

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env

    def find(self) -> Keys | None:
        key, secret = self._env.get("AWS_ACCESS_KEY_ID"), self._env.get("AWS_SECRET_ACCESS_KEY")
        if not key and not secret:
            return None
        if not key or not secret:
            missing = "AWS_SECRET_ACCESS_KEY" if key else "AWS_ACCESS_KEY_ID"
            raise ConfigurationError(f"{missing} is not set, but its counterpart is; set both")
        return Keys(key, secret, self._env.get("AWS_SESSION_TOKEN") or None)


class Profile:
    """A section of ~/.aws/credentials, or of ~/.aws/config."""

    name = "profile of ~/.aws/credentials"

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env

    def find(self) -> Keys | None:
        wanted = self._env.get("AWS_PROFILE") or self._env.get("AWS_DEFAULT_PROFILE") or "default"
        home = Path(self._env.get("HOME") or Path.home()) / ".aws"
        places = (
            (Path(self._env.get("AWS_SHARED_CREDENTIALS_FILE") or home / "credentials"), wanted),
            (
                Path(self._env.get("AWS_CONFIG_FILE") or home / "config"),
                wanted if wanted == "default" else f"profile {wanted}",
            ),
        )
        for path, section in places:
            found = self._read(path, section)
            if found is not None:
                return found
        if self._env.get("AWS_PROFILE"):
            raise ConfigurationError(f"AWS_PROFILE={wanted}: no keys in {places[0][0]} under [{wanted}]")
        return None

    @staticmethod
    def _read(path: Path, section: str) -> Keys | None:
        parser = configparser.RawConfigParser()
        try:
            parser.read_string(path.expanduser().read_text())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, UnicodeDecodeError, configparser.Error):
            raise ConfigurationError(f"{path} cannot be read as a file of AWS profiles") from None
        key = parser.get(section, "aws_access_key_id", fallback="")
        secret = parser.get(section, "aws_secret_access_key", fallback="")
        token = parser.get(section, "aws_session_token", fallback="")
        return Keys(key, secret, token or None) if key and secret else None


class WebIdentity:
    """A token of an identity provider, exchanged for keys at an STS: Amazon's, or the S3 server's own."""

    name = "AWS_WEB_IDENTITY_TOKEN_FILE"

    def __init__(self, address: Address, env: Mapping[str, str]) -> None:
        self._env = env
        own = f"https://sts.{address.region}.amazonaws.com" if address.is_aws else address.endpoint
        self._endpoint = env.get("AWS_ENDPOINT_URL_STS") or own

    def find(self) -> Keys | None:
        path = self._env.get("AWS_WEB_IDENTITY_TOKEN_FILE")
        if not path:
            return None
        try:
            token = Path(path).read_text().strip()
        except (OSError, UnicodeDecodeError):
            raise ConfigurationError(f"AWS_WEB_IDENTITY_TOKEN_FILE={path}: the file cannot be read") from None
        form = {
            "Action": "AssumeRoleWithWebIdentity",
            "Version": "2011-06-15",
            "WebIdentityToken": token,
            "RoleSessionName": self._env.get("AWS_ROLE_SESSION_NAME") or f"hopaas-{secrets.token_hex(4)}",
        }
        if self._env.get("AWS_ROLE_ARN"):
            form["RoleArn"] = self._env["AWS_ROLE_ARN"]
        body = urlencode(form)  # in the body, not in the URL, where proxies would log it
        answer = _ask("POST", self._endpoint, body=body, headers={"Content-Type": "application/x-www-form-urlencoded"})
        keys = _keys_of(
            {name: _element(answer, name) for name in ("AccessKeyId", "SecretAccessKey", "SessionToken", "Expiration")}
        )
        if keys is None:
            raise ConfigurationError(f"{self._endpoint} gave no keys for the token of AWS_WEB_IDENTITY_TOKEN_FILE")
        return keys


def _element(xml: str, name: str) -> str:
    found = re.search(rf"<{name}>([^<]*)</{name}>", xml)
    return html.unescape(found[1]) if found else ""


class Container:
    """The credentials service of a container platform: AWS_CONTAINER_CREDENTIALS_FULL_URI or its relative kin."""

    name = "AWS_CONTAINER_CREDENTIALS_FULL_URI"

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env

    def find(self) -> Keys | None:
        relative = self._env.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")
        url = f"{_CONTAINER}{relative}" if relative else self._env.get("AWS_CONTAINER_CREDENTIALS_FULL_URI")
        if not url:
            return None
        path = self._env.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")
        try:
            token = Path(path).read_text().strip() if path else self._env.get("AWS_CONTAINER_AUTHORIZATION_TOKEN", "")
        except OSError:
            raise ConfigurationError(
                f"AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE={path}: the file cannot be read"
            ) from None
        return _keys_of(_json(_ask("GET", url, headers={"Authorization": token} if token else {}, direct=True)))


class Machine:
    """The metadata service of a cloud's machine (IMDSv2); asked once, and not again where there is none."""

    name = "instance metadata"

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env
        self._absent = env.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true"
        self._answered = False

    def find(self) -> Keys | None:
        if self._absent:
            return None
        base = self._env.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", _METADATA).rstrip("/")
        lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": "21600"}
        try:
            pass_ = {"X-aws-ec2-metadata-token": _ask("PUT", f"{base}/latest/api/token", headers=lifetime, direct=True)}
            roles = f"{base}/latest/meta-data/iam/security-credentials/"
            self._answered = True
            role = _ask("GET", roles, headers=pass_, direct=True).split("\n")[0].strip()
            return _keys_of(_json(_ask("GET", roles + role, headers=pass_, direct=True))) if role else None
        except (StoreUnreachable, ConfigurationError):
            if self._answered:
                raise
            self._absent = True
            return None


def _ask(method: str, url: str, *, body: str | None = None, headers: dict[str, str], direct: bool = False) -> str:
    """One request to a service that gives keys. What it answers, and what it was told, is never shown."""
    wait = _PATIENCE if direct else s3_http.READ
    try:
        with s3_http.pool(url, read=wait, connect=wait, direct=direct) as pool:
            response = pool.urlopen(method, url, body=body, headers=headers)
            status, text = response.status, response.data.decode(errors="replace")
    except urllib3.exceptions.HTTPError:
        raise StoreUnreachable(f"{url} does not answer; it should give the keys for the bucket") from None
    if status >= 500 or status == 429:
        raise StoreUnreachable(f"{url} answered with {status}; it should give the keys for the bucket")
    if status != 200:
        raise ConfigurationError(f"{url} refused to give keys for the bucket: HTTP {status}. Is the token still valid?")
    return text


def _json(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _keys_of(said: dict[str, Any]) -> Keys | None:
    key, secret = said.get("AccessKeyId"), said.get("SecretAccessKey")
    if not key or not secret:
        return None
    try:
        end = datetime.datetime.fromisoformat(said["Expiration"]) if said.get("Expiration") else None
    except (ValueError, TypeError):
        end = None
    return Keys(str(key), str(secret), said.get("SessionToken") or said.get("Token") or None, end)
