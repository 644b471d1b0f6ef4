"""Which keys to sign with: found where every S3 tool looks for them, and fetched anew before they expire.

In order: `AWS_ACCESS_KEY_ID` and its companions; a web identity (`AWS_WEB_IDENTITY_TOKEN_FILE`, `AWS_ROLE_ARN`); the
profile `AWS_PROFILE` of `~/.aws/credentials` or `~/.aws/config`; a container's credentials; the machine's metadata.
Files and services are asked again when what they gave runs out or is refused, so keys may be renewed in the middle of a
run. `hopaas_p2p.runtime.credentials` reads them, and decides whether the bucket's server may see what they sign.

What is sent to services, and what they answer, is never shown.
"""

from __future__ import annotations

import datetime
import html
import json
import os
import re
import secrets
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlencode

import urllib3

from hopaas_p2p.errors import ConfigurationError, StoreUnreachable
from hopaas_p2p.runtime import credentials
from hopaas_p2p.runtime.credentials import Server
from hopaas_p2p.stores.s3 import http as s3_http
from hopaas_p2p.stores.s3.address import Address, servers_of
from hopaas_p2p.stores.s3.keys import Chain, Keys

_METADATA: Final = "http://169.254.169.254"
_METADATA_TIMEOUT: Final = 1.0  # seconds; a metadata service is on the same machine, or not there at all


def chain(address: Address, *, env: Mapping[str, str] = os.environ) -> Chain:
    """Every place where keys may be, in the order of the AWS tools."""
    bucket = address.servers

    def given(found: credentials.AccessKey | None) -> Keys | None:
        return None if found is None else Keys(*found)

    return Chain(
        {
            "AWS_ACCESS_KEY_ID (environment)": lambda: given(credentials.access_key(bucket, env)),
            "web identity": lambda: _web_identity(address, env),
            "profile of ~/.aws/credentials": lambda: given(credentials.profile_key(bucket, env)),
            "CONTAINER credentials": lambda: _container(bucket, env),
            "instance metadata": _Machine(bucket, env).find,
        }
    )


def _web_identity(address: Address, env: Mapping[str, str]) -> Keys | None:
    """A token of an identity provider, exchanged for keys at an STS: Amazon's, or the S3 server's own."""
    own = f"https://sts.{address.region}.amazonaws.com" if address.is_aws else address.endpoint
    endpoint = env.get("AWS_ENDPOINT_URL_STS") or own
    token = credentials.identity(servers_of(endpoint), env)
    if token is None:
        return None
    credentials.may_sign(address.servers, env)
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
    keys = _keys_of(
        {name: _element(answer, name) for name in ("AccessKeyId", "SecretAccessKey", "SessionToken", "Expiration")}
    )
    if keys is None:
        raise ConfigurationError(f"{endpoint} gave no keys for the token of AWS_WEB_IDENTITY_TOKEN_FILE")
    return keys


def _element(xml: str, name: str) -> str:
    found = re.search(rf"<{name}>([^<]*)</{name}>", xml)
    return html.unescape(found[1]) if found else ""


def _container(bucket: list[Server], env: Mapping[str, str]) -> Keys | None:
    """The credentials service of a container platform: AWS_CONTAINER_CREDENTIALS_FULL_URI or …_RELATIVE_URI."""
    service = credentials.container(env)
    if service is None:
        return None
    credentials.may_sign(bucket, env)
    token = service.authorization.reveal()
    return _keys_of(_json(_ask("GET", service.url, headers={"Authorization": token} if token else {}, direct=True)))


class _Machine:
    """The metadata service of a cloud's machine (IMDSv2); asked once, and not again where there is none."""

    def __init__(self, bucket: list[Server], env: Mapping[str, str]) -> None:
        self._bucket, self._env = bucket, env
        self._absent = env.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true"
        self._answered = False

    def find(self) -> Keys | None:
        if self._absent:
            return None
        credentials.may_sign(self._bucket, self._env)
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
            asked = pool.urlopen(method, url, body=body, headers=headers, redirect=False, preload_content=False)
            response = s3_http.whole(asked)
            status, text = response.status, (response.data or b"").decode(errors="replace")
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
