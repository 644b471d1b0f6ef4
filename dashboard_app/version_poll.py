"""Answers the poll by which a browser learns, every two seconds, whether anything has changed and how old its data are.

A page issues a ticket, which consists of 128 random bits. `GET …/version?ticket=…` then returns about 100 bytes for
that page, from memory and without a run of Streamlit. A ticket expires 15 minutes or more after the last poll, or
when 10,000 others were used more recently. A request without a valid ticket gets an error, with or without sign-in.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

Answer = Callable[[], dict[str, Any]]

PATH: Final = "/version"
_EXPIRES_AFTER: Final = 900.0  # seconds since the last poll, because a laptop may sleep for a while
_MOST: Final = 10_000
_answers: Final[dict[str, tuple[Answer, float]]] = {}
"""Ticket -> the function that answers, and when it was last polled; the least recently used ticket comes first."""
_lock: Final = threading.Lock()


def issue(ticket: str | None, answer: Answer) -> str:
    """A ticket with which a browser gets this answer: the given one if it is still valid, or else a new one."""
    now = time.monotonic()
    with _lock:
        if ticket is None or _answers.pop(ticket, None) is None:
            ticket = secrets.token_urlsafe(16)
            for old, (_, polled) in list(_answers.items()):
                if len(_answers) < _MOST and now - polled <= _EXPIRES_AFTER:
                    break
                del _answers[old]
        _answers[ticket] = (answer, now)
    return ticket


def ask(ticket: str) -> dict[str, Any] | None:
    """The answer to a poll with this ticket; None for an unknown ticket."""
    with _lock:
        known = _answers.pop(ticket, None)
        if known is None:
            return None
        _answers[ticket] = (known[0], time.monotonic())
    return known[0]()


def route(prefix: str = "") -> Route:
    """The route that answers polls, below this server's path."""

    async def version(request: Request) -> JSONResponse:
        answer = await run_in_threadpool(ask, request.query_params.get("ticket", ""))
        headers = {"Cache-Control": "no-store"}
        if answer is None:
            return JSONResponse({"error": "unknown ticket; load the page again"}, status_code=404, headers=headers)
        return JSONResponse(answer, headers=headers)

    return Route(prefix + PATH, version)
