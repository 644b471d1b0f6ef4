"""Services that give keys: an identity provider's STS, a container platform, a cloud's machine.

What is sent to them, and what they answer, is never shown.
"""

from __future__ import annotations

import datetime
import html
import json
import re
import secrets
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlencode

import urllib3

from hopaas_p2p.errors import ConfigurationError, StoreUnreachable
from hopaas_p2p.settings import secret_in
from hopaas_p2p.stores.s3 import http as s3_http
from hopaas_p2p.stores.s3.address import Address
from hopaas_p2p.stores.s3.keys import Keys

_METADATA: Final = "http://169.254.169.254"
_CONTAINER: Final = "http://169.254.170.2"
_METADATA_TIMEOUT: Final = 1.0  # seconds; a metadata service is on the same machine, or not there at all


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
        form = {
            "Action": "AssumeRoleWithWebIdentity",
            "Version": "2011-06-15",
            "WebIdentityToken": secret_in(path, self.name, "token"),
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
    """The credentials service of a container platform: AWS_CONTAINER_CREDENTIALS_FULL_URI or …_RELATIVE_URI."""

    name = "AWS_CONTAINER_CREDENTIALS_FULL_URI"

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env

    def find(self) -> Keys | None:
        relative = self._env.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")
        url = f"{_CONTAINER}{relative}" if relative else self._env.get("AWS_CONTAINER_CREDENTIALS_FULL_URI")
        if not url:
            return None
        token = self._env.get("AWS_CONTAINER_AUTHORIZATION_TOKEN", "")
        if path := self._env.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"):
            token = secret_in(path, "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "token")
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
    """One request to a service that gives keys. What is sent, and what it answers, is never shown."""
    wait = _METADATA_TIMEOUT if direct else s3_http.READ
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
