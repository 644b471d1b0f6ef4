"""A bucket far away: requests are slow, counted by kind, and have their prices."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from tests.support.http_messages import Request
from tests.support.s3_faults import FaultProxy
from tests.support.seaweed import Seaweed

PUT, GET = 0.045, 0.020
PRICES = {"PUT": 5e-6, "LIST": 5e-6, "POST": 5e-6, "GET": 4e-7, "HEAD": 4e-7, "DELETE": 0.0}
"""Dollars a request, of Amazon's standard class in us-east-1: 0.005 for 1,000 PUT or LIST, 0.0004 for 1,000 GET."""


class Row(NamedTuple):
    """One line of the table."""

    what: str
    ours: str
    theirs: str = ""
    asked: str = ""


class Link:
    """A store behind slow requests, and what was asked of it, by kind and by place."""

    def __init__(self, server: Seaweed, proxy: FaultProxy) -> None:
        self._proxy = proxy
        self.prefix = server.new_prefix()
        self.url = server.url(self.prefix, endpoint=proxy.endpoint)
        self.direct = server.url(self.prefix)
        self.asked: Counter[str] = Counter()
        """By kind; those of beats, snapshots' listings and studies' logs once more by themselves."""
        self.seen: Counter[str] = Counter()
        proxy.always = self._note

    def _note(self, request: Request) -> None:
        self.asked[request.kind] += 1
        if "/beats/" in request.path:
            self.asked[f"{request.kind} beat"] += 1
        if "/study/" in request.path and "/log/" in request.path:
            self.asked["of a study's log"] += 1
        if request.kind == "LIST" and "snapshot" in request.path:
            self.asked["LIST snapshot"] += 1

    def clear(self) -> None:
        self.asked.clear()

    @property
    def requests(self) -> int:
        """All of them."""
        return sum(self.asked[kind] for kind in PRICES)


@contextlib.contextmanager
def link(server: Seaweed) -> Iterator[Link]:
    with FaultProxy(server.port, put=PUT, get=GET) as proxy:
        yield Link(server, proxy)
