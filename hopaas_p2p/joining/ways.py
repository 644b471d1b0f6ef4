"""Finds a route from a site to a store: tries one after another, with the doctor's checks, and reports each failure.

    the relay that worked last time; the proxy of this environment, else that of last time; directly; a relay

A store without servers has only one route. A route is tried in this process's own environment, because all code that
opens connections looks for a proxy there.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, Literal

from hopaas_p2p.errors import ASK_FOR_ANOTHER, ConfigurationError, Denied, HopaasError
from hopaas_p2p.joining.membership import Membership
from hopaas_p2p.net.findings import AGAIN, Finding
from hopaas_p2p.open import open_store, servers_of
from hopaas_p2p.runtime.settings import Secret, read_proxy, variable
from hopaas_p2p.stores.checks import way_to

_NOT_SET: Final = ("store", "study", "token_file", "token_host", "proxy_file", "via")
"""Settings that are found through HOPAAS_JOINED, or, the last two, are not needed because a route sets HTTPS_PROXY."""
_PROXY_VARIABLES: Final = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


def find(membership: Membership, say: Callable[[Finding], None]) -> tuple[str, Membership]:
    """The kind of the first route that leads to the store, and the membership that records it. Call `enter` first.

    The kinds are direct, proxy and relay. This process uses the route from now on. `say` gets every finding of the
    route that works, or of all routes if none does.

    Raises:
        Denied: the server was reached, and no longer accepts the invitation's token.
        ConfigurationError: no route works; the findings show why.

    """
    failed: list[tuple[str, Finding]] = []
    before = {name: os.environ.get(name) for name in _PROXY_VARIABLES}
    for kind, file in _candidates(membership):
        findings: list[Finding] = []
        reached = False
        try:
            if file is not None:
                proxy = read_proxy(file).reveal() if file else None
                _set_variables(dict.fromkeys(_PROXY_VARIABLES) | {"HTTPS_PROXY": proxy})
            with contextlib.closing(open_store(membership.store, create=False)) as store:
                looking = way_to(store)
                while True:
                    findings.append(next(looking))
        except StopIteration as end:
            reached = end.value
        except HopaasError as error:
            findings.append(Finding("open", str(error), passed=False, cure=AGAIN))
        if not reached:
            failed += [(kind, finding) for finding in findings]
            _set_variables(before)
            continue
        for finding in findings:
            say(finding)
        if kind == "relay":
            return kind, membership.changed(proxy_file=str(membership.file("relay")))
        if not servers_of(membership.store):
            return kind, membership
        found = _environments_proxy()
        return kind, membership.with_proxy(None if found is None else Secret(found))
    for kind, finding in failed:
        say(finding._replace(check=f"{kind}: {finding.check}"))
    if any(ASK_FOR_ANOTHER in finding.detail for _, finding in failed):
        raise Denied(f"your invitation to {membership.study!r} has expired or was revoked. Ask its sender for another")
    tried = ", ".join(dict.fromkeys(kind for kind, _ in failed))
    raise ConfigurationError(
        f"{membership.store} cannot be reached from here (tried: {tried}). Fix what failed above. If nodes can "
        "reach only their login node, start there: hopaas-p2p join --submit SYSTEM; if they can reach nothing, add "
        "--via folder"
    )


def _candidates(membership: Membership) -> Iterator[tuple[str, Path | Literal[""] | None]]:
    """The routes that could work here, in the order in which to try them.

    Each route comes with the file of the proxy for HTTPS_PROXY; "" means no proxy, and None an unchanged environment.
    """
    if not servers_of(membership.store):
        yield "direct", None
        return
    relay, last = membership.file("relay"), membership.values.get("proxy_file")
    if last == str(relay) and relay.exists():
        yield "relay", relay
    if _environments_proxy() is not None:
        yield "proxy", None
    elif last not in (None, str(relay)):
        yield "proxy", relay.with_suffix(".proxy")
    yield "direct", ""
    if relay.exists():
        yield "relay", relay


def _environments_proxy() -> str | None:
    return next((os.environ[name] for name in _PROXY_VARIABLES if os.environ.get(name)), None)


def enter(membership: Membership) -> None:
    """Make this process and its children use the study's file, and ignore settings for any other store."""
    os.environ[variable("joined")] = membership.name
    told = {name: value for name, value in membership.values.items() if name not in _NOT_SET}
    for name in ("store", "study"):
        os.environ.pop(variable(name), None)
    _set_variables({variable(name): value for name, value in told.items()})


def _set_variables(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
