"""A page of the dashboard run by Streamlit's AppTest, without a browser, on a store that is read in this thread."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("streamlit")

from streamlit.testing.v1 import AppTest

from dashboard_app import actor, options
from dashboard_app.feed import Feed
from dashboard_app.here import Here
from dashboard_app.options import Options
from dashboard_app.registry import PAGES
from hopaas_p2p.core.catalog import Listing

_feeds: dict[str, Feed] = {}
_listings: dict[tuple[str, str], Listing] = {}


def page(
    name: str, url: str, study: str | None = None, *, actions: bool = True, query: dict[str, str] | None = None
) -> AppTest:
    """The page of this name in the address, about that study; `run` it."""
    told = Options(stores=(url,), actions=actions)
    options.use(told)
    if url not in _feeds:
        _feeds[url] = Feed(url, threaded=False)

    def script(name: str, url: str, study: str | None) -> None:
        from tests import dashboard_pages

        dashboard_pages.show(name, url, study)

    test = AppTest.from_function(script, args=(name, url, study), default_timeout=60)
    for key, value in (query or {}).items():
        test.query_params[key] = value
    return test


def feed(url: str) -> Feed:
    """The feed that the pages of this store read; `tick` it to let it see what is new."""
    return _feeds[url]


def show(name: str, url: str, study: str | None) -> None:
    """What runs inside AppTest."""
    entry = next(entry for entry in PAGES if entry.path == name)
    if study is not None and (url, study) not in _listings:
        found = _feeds[url].find(study)
        assert found is not None, f"no study {study}"
        _listings[url, study] = found
    listing = _listings[url, study] if study is not None and entry.study else None  # as a session goes on with it
    entry.load()(Here(_feeds[url], options.current(), listing))


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
    for one in _feeds.values():
        one.close()
    _feeds.clear()
    _listings.clear()
    actor.close_all()
    options.use(Options())
