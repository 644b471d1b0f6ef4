"""A site's record of a study that it has joined: a file of settings, and files for its secrets, private to this user.

`~/.config/hopaas-p2p/joined/NAME.toml` holds settings, as any settings file does: store, study, site, and the names of
the files that hold the token, the authority and the proxy. Batch jobs name the study in HOPAAS_JOINED, so that no
script and no job description holds a secret. `token_host` lists the store's hosts, to which only this token is sent.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal, NamedTuple

from hopaas_p2p.errors import ConfigurationError, InvalidInput
from hopaas_p2p.joining.invitation import Invitation, like_a_file
from hopaas_p2p.open import servers_of
from hopaas_p2p.runtime import credentials
from hopaas_p2p.runtime.atomic import locked, replace_atomically
from hopaas_p2p.runtime.ownership import named_folder, own_folder
from hopaas_p2p.runtime.settings import Secret, is_one_line, joined, joined_folder, joined_names, left_hosts

_PATIENCE: Final = 30.0  # seconds


class Membership(NamedTuple):
    """A joined study, as described by its file."""

    name: str
    """The name for HOPAAS_JOINED."""
    store: str
    study: str
    values: dict[str, str]
    """All settings of the file."""

    def file(self, ending: Literal["toml", "token", "ca", "proxy", "relay", "box"]) -> Path:
        """A file of this study: its settings, a secret that they name, or the address and login of its relay; or the
        `box`, the folder through which the store is served to jobs that can reach nothing else.
        """
        return joined_folder() / f"{self.name}.{ending}"

    def with_proxy(self, address: Secret | None) -> Membership:
        """This membership with this proxy, or without one; the proxy's address goes into a separate file."""
        return self.changed(proxy_file=None if address is None else str(_write(self.file("proxy"), address.reveal())))

    def changed(self, **values: str | None) -> Membership:
        """This membership with these settings, and without those that are None."""
        kept = {key: value for key, value in {**self.values, **values}.items() if value is not None}
        return self if kept == self.values else keep(self._replace(values=kept))


def accept(invitation: Invitation, *, site: str = "") -> Membership:
    """Save the content of this invitation, private to this user. Does not contact the store.

    Raises:
        ConfigurationError: the invitation has expired, or its URL contains more than the store's address.
        InvalidInput: the invitation would send this user's own token to a stranger's server, or a name in it is not one
            line.

    """
    site = site or invitation.site
    for text in (invitation.store, invitation.study, site):  # first, because the messages of other checks show them
        if not is_one_line(text):
            raise InvalidInput(f"{text!r} has a line break or another control character in it")
    if "://" in invitation.store:  # before anything reads the URL with its options
        credentials.check_says_where(invitation.store, by="the invitation")
    invitation.check()
    # without its own token, one of this user's would be sent there
    if invitation.store.lower().startswith(("postgresql", "https:")) and invitation.token is None:
        raise InvalidInput(
            "this invitation is for a store with users but contains no token; it was not created by `invite`"
        )
    with _one_at_a_time():
        values = {"store": invitation.store, "study": invitation.study, **({"site": site} if site else {})}
        made = Membership(_free_name(invitation), invitation.store, invitation.study, values)
        if invitation.token is not None:
            values["token_file"] = str(_write(made.file("token"), invitation.token.reveal()))
        if servers := servers_of(invitation.store):
            values["token_host"] = ",".join(sorted({f"{host.lower()}:{port}" for host, port in servers}))
        if invitation.authority:
            values["ca_file"] = str(_write(made.file("ca"), invitation.authority))
        return keep(made)


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Let one process join a study at a time, so that no token goes to the host of another study of the same name."""
    lock = joined_folder().with_suffix(".lock")
    try:
        lock.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with named_folder(lock.parent) as folder, locked(folder / lock.name, patience=_PATIENCE):
            yield
    except TimeoutError:
        raise ConfigurationError(f"another process has been joining a study for {_PATIENCE:.0f} s; try again") from None


def _free_name(invitation: Invitation) -> str:
    """The study's name, unless a study of the same name in another store has it."""
    base = like_a_file(invitation.study)[:40]
    for name in (base, *(f"{base}-{number}" for number in range(2, 1000))):
        known = load(name) if name in joined_names() else None
        if known is None or (known.store, known.study) == (invitation.store, invitation.study):
            return name
    raise ConfigurationError("too many studies of this name are joined here; leave one: hopaas-p2p join --leave NAME")


def keep(membership: Membership) -> Membership:
    """Write the settings file."""
    lines = [f"{key} = {_quoted(value)}\n" for key, value in membership.values.items()]
    _write(membership.file("toml"), "".join(lines))
    return membership


def _quoted(text: str) -> str:
    """The text as a TOML string. JSON's escapes are not valid there, because they write an emoji as two surrogates."""
    plain = [one if one.isascii() and one.isprintable() and one not in '"\\' else f"\\U{ord(one):08x}" for one in text]
    return f'"{"".join(plain)}"'


def load(name: str) -> Membership:
    """The study that is joined under this name.

    Raises:
        ConfigurationError: no study is joined under this name, or its file is not this user's own, or is damaged.

    """
    values = joined(name)
    if not {"store", "study"} <= values.keys():
        raise ConfigurationError(f"{joined_folder() / name}.toml lacks a store or a study. Remove it, and join again")
    return Membership(name, values["store"], values["study"], values)


def forget(name: str) -> None:
    """Remove the files of a joined study, except for the folder of its jobs; `left_hosts` remembers its hosts."""
    places = ""
    with contextlib.suppress(ConfigurationError):  # a damaged file
        places = joined(name).get("token_host", "")
    if places:
        hosts = {one.rpartition(":")[0].rstrip(".") for one in places.split(",")}
        with _one_at_a_time():
            _write(joined_folder() / "left", "\n".join(sorted(hosts | left_hosts())))
    for path in joined_folder().glob(f"{name}.*"):
        if path.is_file():
            path.unlink(missing_ok=True)


def _write(path: Path, text: str) -> Path:
    with own_folder(path.parent) as folder, replace_atomically(folder / path.name, private=True) as draft:
        draft.write_text(text if text.endswith("\n") else f"{text}\n")
    return path
