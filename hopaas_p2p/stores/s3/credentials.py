"""Which keys to sign with: found where every S3 tool looks for them, and fetched anew before they expire.

In order: `AWS_ACCESS_KEY_ID` and its companions; a web identity (`AWS_WEB_IDENTITY_TOKEN_FILE`, `AWS_ROLE_ARN`); the
profile `AWS_PROFILE` of `~/.aws/credentials` or `~/.aws/config`; a container's credentials; the machine's metadata.
Files and services are asked again when what they gave runs out or is refused, so keys may be renewed in the middle of a
run. `hopaas_p2p.credentials` reads them, and decides whether the bucket's server may see what they sign.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import NamedTuple

from hopaas_p2p import credentials
from hopaas_p2p.credentials import AccessKey
from hopaas_p2p.stores.s3.address import Address
from hopaas_p2p.stores.s3.key_services import Container, Machine, WebIdentity
from hopaas_p2p.stores.s3.keys import Chain, Keys


class _KeyPlace(NamedTuple):
    name: str
    look: Callable[[], AccessKey | None]

    def find(self) -> Keys | None:
        found = self.look()
        return None if found is None else Keys(*found)


def chain(address: Address, *, env: Mapping[str, str] = os.environ) -> Chain:
    """Everything there is, in the order of the AWS tools."""
    to = address.servers
    return Chain(
        [
            _KeyPlace("AWS_ACCESS_KEY_ID (environment)", lambda: credentials.access_key(to, env)),
            WebIdentity(address, env),
            _KeyPlace("profile of ~/.aws/credentials", lambda: credentials.profile_key(to, env)),
            Container(to, env),
            Machine(to, env),
        ]
    )
