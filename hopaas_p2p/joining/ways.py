"""How a site reaches a store: tries one way after the other, as the doctor would, and says why each one fails.

    the way that worked last time, the proxy of this environment, or the one of last time, directly, a relay

Through a folder there is one way only. A way is tried in this process's own environment, since
that is where all that opens a connection looks for a proxy.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

from hopaas_p2p.errors import ConfigurationError, HopaasError
from hopaas_p2p.joining.membership import Membership
from hopaas_p2p.net.findings import AGAIN, Finding
from hopaas_p2p.open import open_store
from hopaas_p2p.runtime.settings import Secret, read_proxy, variable
from hopaas_p2p.stores.checks import way_to

KINDS: Final = ("direct", "proxy", "relay")
_OURS: Final = ("proxy_file", "via")  # a way sets HTTPS_PROXY itself
_OF_THE_FILE: Final = ("store", "study", "token_file", "token_host")  # found by HOPAAS_JOINED
_PROXY_VARIABLES: Final = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


class Way(NamedTuple):
    """One way to a store."""

    kind: str
    """One of `KINDS`."""
    proxy: Secret | None = None
    """What HTTPS_PROXY is to be, if it is not what the environment says."""


def find(membership: Membership, say: Callable[[Finding], None]) -> tuple[Way, Membership]:
    """The first way that leads to the store, which this process uses from now on; and the membership that keeps it.

    `say` is told every finding of the way that works, or of all if none does. Call `enter` first.

    Raises:
        ConfigurationError: none does; the findings say why.

    """
    failed: list[tuple[Way, list[Finding]]] = []
    for way in _candidates(membership):
        findings: list[Finding] = []
        if _try(way, membership, findings):
            for finding in findings:
                say(finding)
            return way, _kept(way, membership)
        failed.append((way, findings))
    for way, findings in failed:
        for finding in findings:
            say(finding._replace(check=f"{way.kind}: {finding.check}"))
    tried = ", ".join(way.kind for way, _ in failed)
    raise ConfigurationError(
        f"{membership.store} cannot be reached from here (tried: {tried}). Fix what failed above. If nodes can "
        "reach only their login node, start there: hopaas-p2p join --submit SYSTEM; if they can reach nothing, add "
        "--via folder"
    )


def _candidates(membership: Membership) -> Iterator[Way]:
    """The ways that could work here, the one that did so last time first."""
    if not _has_way(membership.store):
        yield Way("direct")
        return
    relay = Way("relay")
    if membership.values.get("proxy_file") == str(membership.relay_file) and membership.relay_file.exists():
        yield relay
    if _environments_proxy() is not None:
        yield Way("proxy")
    elif "proxy_file" in membership.values and membership.values["proxy_file"] != str(membership.relay_file):
        yield Way("proxy", read_proxy(membership.relay_file.with_suffix(".proxy")))
    yield Way("direct", Secret(""))
    if membership.relay_file.exists():
        yield relay


def _has_way(url: str) -> bool:
    return url.startswith(("postgresql", "s3:", "https:"))


def _environments_proxy() -> str | None:
    return next((os.environ[name] for name in _PROXY_VARIABLES if os.environ.get(name)), None)


def _try(way: Way, membership: Membership, findings: list[Finding]) -> bool:
    """Whether this way leads there; if so, this process's environment says so from then on."""
    before = {name: os.environ.get(name) for name in _PROXY_VARIABLES}
    try:
        proxy = read_proxy(membership.relay_file) if way.kind == "relay" else way.proxy
        if proxy is not None:
            _set_variables(dict.fromkeys(_PROXY_VARIABLES) | {"HTTPS_PROXY": proxy.reveal() or None})
        with contextlib.closing(open_store(membership.store, create=False)) as store:
            looking = way_to(store)
            while True:
                findings.append(next(looking))
    except StopIteration as end:
        if end.value:
            return True
    except HopaasError as error:
        findings.append(Finding("open", str(error), passed=False, cure=AGAIN))
    _set_variables(before)
    return False


def enter(membership: Membership) -> None:
    """Let this process, and those that it starts, take part in the study, by its file: no other store counts."""
    os.environ[variable("joined")] = membership.name
    told = {name: value for name, value in membership.values.items() if name not in (*_OURS, *_OF_THE_FILE)}
    for name in ("store", "study"):
        os.environ.pop(variable(name), None)
    _set_variables({variable(name): value for name, value in told.items()})


def _set_variables(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


def _kept(way: Way, membership: Membership) -> Membership:
    if way.kind == "relay":
        return membership.changed(proxy_file=str(membership.relay_file))
    if not _has_way(membership.store):
        return membership
    found = _environments_proxy()
    return membership.with_proxy(None if found is None else Secret(found))
