"""An invitation: one string with the address of a study and the secret that gives access to it.

An invitation is for people who have no access yet, so it contains a secret if the store has tokens. It is printed once,
read from a file or from standard input, and never put into an argument, a log or a repr. Its token belongs to a
separate user, a *guest*, who has a grant for this one study and nothing else. Keys of a bucket and permissions of a
directory are not included; for such a store, the string contains only the address.
"""

from __future__ import annotations

import contextlib
import datetime
import re
import shlex
import time
import zlib
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import msgspec
from msgspec.structs import replace

from hopaas_p2p import access
from hopaas_p2p.errors import ConfigurationError, InvalidInput, explained
from hopaas_p2p.open import names_servers, open_store, redacted
from hopaas_p2p.remote.access import ROLES
from hopaas_p2p.runtime import credentials, settings
from hopaas_p2p.runtime.atomic import read_named
from hopaas_p2p.runtime.settings import Secret
from hopaas_p2p.runtime.spelled import read_spelled, spell
from hopaas_p2p.stores.postgres.connect import PostgresAddress
from hopaas_p2p.stores.postgres.store import PostgresStore
from hopaas_p2p.stores.s3.address import parse

_PREFIX: Final = "hpj1-"
_LONGEST: Final = 1 << 16
_DAY: Final = 86400
MOST_DAYS: Final = 366
_CERTIFICATE: Final = re.compile(r"-----BEGIN (?:\w+ )?CERTIFICATE-----[^-]+-----END (?:\w+ )?CERTIFICATE-----")
_LIKE_A_FILE: Final = re.compile(r"[^A-Za-z0-9-]+")


class Invitation(msgspec.Struct, frozen=True):
    """The content of an invitation. `seal` returns the string, and `Invitation.parse` reads it."""

    store: str
    """The store's URL, without a login."""
    study: str
    token: Secret | None
    """The content of a token file; None if the store has no tokens."""
    expires: Annotated[int, msgspec.Meta(ge=0, lt=253_402_300_800)]  # the year 10,000
    """Seconds since 1970. A server ends the token by its own clock; without a token, readers check this time only."""
    site: str = ""
    """The name of the site that the invitation is for."""
    authority: str = ""
    """The certificates of a private authority that vouches for the server, in PEM."""

    def seal(self) -> Secret:
        """The string, which is a secret."""
        return Secret(spell(_PREFIX, zlib.compress(msgspec.msgpack.encode(self, enc_hook=Secret.reveal), 9)))

    @classmethod
    def parse(cls, text: str) -> Invitation:
        """The invitation in this string.

        Raises:
            InvalidInput: the string is not an invitation, or only a part of one. The message shows none of it.

        """
        text = "".join(text.removeprefix("\ufeff").split())  # editors add a byte-order mark, and mail breaks lines
        try:
            if len(text) > _LONGEST:
                raise ValueError
            body = zlib.decompressobj().decompress(read_spelled(_PREFIX, text), _LONGEST)
            return msgspec.msgpack.decode(body, type=cls, dec_hook=_secret)
        except (ValueError, zlib.error, msgspec.MsgspecError):
            what = "it is truncated or was changed" if text.startswith(_PREFIX) else f"it does not begin with {_PREFIX}"
            raise InvalidInput(
                f"this is not an invitation: {what}; use everything that `hopaas-p2p invite` printed"
            ) from None

    def check(self) -> None:
        """Raises ConfigurationError if the invitation has expired, or its URL depends on the reader's environment."""
        if time.time() > self.expires:
            day = datetime.datetime.fromtimestamp(self.expires, tz=datetime.UTC).date()
            raise ConfigurationError(
                f"this invitation to {self.study!r} was valid until {day}. Ask its sender for another: "
                f"hopaas-p2p invite {shlex.quote(self.study)}"
            )
        if "://" not in self.store and not Path(self.store).is_absolute():
            raise ConfigurationError(f"{self.store!r} is a relative path; ask the sender for an invitation with a URL")
        if not names_servers(self.store):
            cure = "Name it in the URL: postgresql://HOST/…, or s3://…?endpoint=https://HOST"
            raise ConfigurationError(f"{redacted(self.store)} does not say on which server the store is. {cure}")


def _secret(_kind: type, text: object) -> Secret:
    if not isinstance(text, str) or not text:
        raise ValueError
    return Secret(text)


class NewInvitation(NamedTuple):
    """An invitation that was just made, and its guest."""

    invitation: Invitation
    guest: str
    """The user that the invitation is for; empty if the store has no users."""
    token_name: str
    """The token's name, for `admin token list` and `admin token revoke`; empty if the store has no tokens."""


def invite(
    store: str, study: str, *, role: str = "worker", days: int = 7, site: str = "", via: str | None = None
) -> NewInvitation:
    """Make an invitation to a study.

    Args:
        store: the store's URL, with the right to write to it; on Postgres, with an administrator's login.
        study: the study's name.
        role: the guest's role: viewer, worker or owner. Only a database or a server can enforce it.
        days: how many days the invitation is valid.
        site: the guest's site; `join` uses it as the site's name. Guests of one site are one user.
        via: the URL by which guests reach the store, if it differs, such as a server's.

    Raises:
        InvalidInput: there is no such role, or the number of days is not from 1 to 366.
        NoSuchStudy: there is no such study.
        Denied: on Postgres, or through a server, you are not an administrator.
        ConfigurationError: the address contains a password or another option, or does not name the store's server.

    """
    if role not in ROLES:
        raise InvalidInput(f"role must be one of {', '.join(ROLES)}, got {role!r}")
    if not 1 <= days <= MOST_DAYS:
        raise InvalidInput(f"days must be from 1 to {MOST_DAYS}, got {days}")
    with contextlib.closing(open_store(store, create=False)) as opened:
        uuid = access.uuid_of(opened, study)
        url = _public(via or opened.url)
        has_users = isinstance(opened, PostgresStore) or url.lower().startswith("https:")
    invitation = Invitation(url, study, None, int(time.time()) + days * _DAY, site, _authority(url))
    invitation.check()
    if not has_users:
        return NewInvitation(invitation, "", "")
    guest = access.guest(store, uuid, role, site)
    access.grant(store, study, guest, role)
    label = f"invitation to {study}" + (f" for {site}" if site else "")
    made = access.create_token(store, guest, label=label, days=days)
    invitation = replace(invitation, token=made.secret, expires=int(made.expires.timestamp()))
    return NewInvitation(invitation, guest, made.name)


def like_a_file(name: str) -> str:
    """The name in letters, digits and hyphens, for a user or a file."""
    return _LIKE_A_FILE.sub("-", name).strip("-") or "study"


def _public(url: str) -> str:
    """The URL in a form that others may read: the store's address, without a login or this machine's files."""
    if redacted(url) != url and "***" not in url:
        raise ConfigurationError(f"{redacted(url)}: others will read this address, so it must not contain a password")
    if not url.startswith("postgresql"):
        if "://" not in url:
            return Path(url).absolute().as_uri()
        credentials.check_says_where(url, by="an invitation")
        return parse(url).url if url.lower().startswith("s3:") else url
    found = PostgresAddress(url).sqlalchemy_url
    found = found.set(query={key: value for key, value in found.query.items() if key in credentials.WHERE})
    # `set` takes no None
    return found._replace(drivername="postgresql", username=None, password=None).render_as_string()


def _authority(url: str) -> str:
    """The certificates in HOPAAS_CA_FILE, for a store that is reached over TLS."""
    file = settings.ca_file()
    if file is None or "://" not in url or url.startswith(("file:", "folder:")):
        return ""
    with explained(f"HOPAAS_CA_FILE={file}"):
        text = "\n".join(_CERTIFICATE.findall(read_named(Path(file))))  # a server's file may hold its private key, too
    return text if len(text) <= _LONGEST // 4 else ""  # a longer one may be a system's bundle of all authorities
