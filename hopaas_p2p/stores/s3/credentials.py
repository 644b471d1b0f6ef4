"""Which keys to sign with: found where every S3 tool looks for them, and fetched anew before they expire.

In order: `AWS_ACCESS_KEY_ID` and its companions; a web identity (`AWS_WEB_IDENTITY_TOKEN_FILE`, `AWS_ROLE_ARN`); the
profile `AWS_PROFILE` of `~/.aws/credentials` or `~/.aws/config`; a container's credentials; the machine's metadata.
Files and services are asked again when what they gave runs out or is refused, so keys may be renewed in the middle of a
run.
"""

from __future__ import annotations

import configparser
import os
from collections.abc import Mapping
from pathlib import Path

from hopaas_p2p.errors import ConfigurationError, waits_for
from hopaas_p2p.stores.s3.address import Address
from hopaas_p2p.stores.s3.key_services import Container, Machine, WebIdentity
from hopaas_p2p.stores.s3.keys import Chain, Keys


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
        in_config = wanted if wanted == "default" else f"profile {wanted}"
        places = (
            (Path(self._env.get("AWS_SHARED_CREDENTIALS_FILE") or home / "credentials"), wanted),
            (Path(self._env.get("AWS_CONFIG_FILE") or home / "config"), in_config),
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
            with waits_for(str(path)):
                parser.read_string(path.expanduser().read_text())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, UnicodeDecodeError, configparser.Error):
            raise ConfigurationError(f"{path} cannot be read as a file of AWS profiles") from None
        key = parser.get(section, "aws_access_key_id", fallback="")
        secret = parser.get(section, "aws_secret_access_key", fallback="")
        token = parser.get(section, "aws_session_token", fallback="")
        return Keys(key, secret, token or None) if key and secret else None
