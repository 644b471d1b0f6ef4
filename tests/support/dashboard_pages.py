"""A page of the dashboard run by Streamlit's AppTest, without a browser, on a store that is read in this thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("streamlit")

from streamlit.testing.v1 import AppTest

from dashboard_app import options
from dashboard_app.app import PAGES
from dashboard_app.options import DashboardOptions
from dashboard_app.page_context import PageContext
from dashboard_app.replica_cache import ReplicaCache
from hopaas_p2p.core.catalog import Listing

_caches: dict[str, ReplicaCache] = {}
_listings: dict[tuple[str, str], Listing] = {}


def page(
    name: str,
    url: str,
    study: str | None = None,
    *,
    actions: bool = True,
    person: str = "",
    query: dict[str, str] | None = None,
) -> AppTest:
    """The page of this name in the address, about that study, as a person sees it who has signed in; `run` it."""
    opts = DashboardOptions(store=url, actions=actions, auth="oidc" if person else "none")
    options.use(opts)
    if url not in _caches:
        _caches[url] = ReplicaCache(url, threaded=False)

    def script(name: str, url: str, study: str | None, person: str) -> None:
        from tests.support import dashboard_pages

        dashboard_pages.show(name, url, study, person)

    test = AppTest.from_function(script, args=(name, url, study, person), default_timeout=60)
    for key, value in (query or {}).items():
        test.query_params[key] = value
    return test


def drawn(draw: Callable[..., None], *args: Any) -> AppTest:
    """A part of a page that Streamlit runs without the page, such as an open dialog; `run` it."""

    def script(draw: type, args: tuple[object, ...]) -> None:  # Streamlit runs its text: only built-in names are known
        draw(*args)

    return AppTest.from_function(script, args=(draw, args), default_timeout=60)


def cache(url: str) -> ReplicaCache:
    """The cache that the pages of this store read; `tick` it to let it see what is new."""
    return _caches[url]


def show(name: str, url: str, study: str | None, person: str) -> None:
    """What runs inside AppTest."""
    entry = next(entry for entry in PAGES if entry.path == name)
    if study is not None and (url, study) not in _listings:
        found = listing_of(_caches[url], study)
        _listings[url, study] = found
    listing = _listings[url, study] if study is not None and entry.study else None  # as a session goes on with it
    entry.draw(PageContext(_caches[url], options.current(), listing, person))


def listing_of(cache: ReplicaCache, study: str) -> Listing:
    """The study of this name."""
    return next(one for one in cache.studies() if one.name == study)


def texts(test: AppTest) -> str:
    """Everything that the page says, as one text."""
    parts: list[str] = []
    for block in (test.main, test.sidebar):
        for element in _all(block):
            value = getattr(element, "value", None)
            parts.append(str(value if value is not None else getattr(element, "proto", "")))
            parts.append(str(getattr(element, "label", "")))
    return "\n".join(parts)


def _all(block: Any) -> Iterator[Any]:
    for child in block.children.values():
        if hasattr(child, "children"):
            yield from _all(child)
        yield child


def calm(test: AppTest) -> AppTest:
    """The test, run, when no exception came of it."""
    ran = test.run()
    assert not ran.exception, [one.stack_trace for one in ran.exception]
    return ran


def close_all() -> None:
    """Let go of the stores."""
    for one in _caches.values():
        one.close()
    _caches.clear()
    _listings.clear()
    options.use(DashboardOptions())
