"""What a browser asks every two seconds: has anything changed, and how old is what you know.

A page hands its browser a ticket; `GET …/pulse?ticket=…` answers with some 100 bytes, from memory, and runs nothing of
Streamlit. A ticket is 128 random bits, good for the one question that its page asked, and forgotten soon after nobody
asks any more: who has none learns nothing, whether people sign in here or not.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from starlette.routing import Route

Answer = Callable[[], dict[str, Any]]

PATH: Final = "/pulse"
_FORGOTTEN: Final = 900.0  # seconds after the last question; a laptop's lid may be closed for a while
_MOST: Final = 10_000


class _Tickets:
    def __init__(self) -> None:
        self._answers: dict[str, tuple[Answer, float]] = {}
        self._lock = threading.Lock()

    def issue(self, ticket: str | None, answer: Answer) -> str:
        """A ticket for this answer: the given one once more, if it is still known."""
        now = time.monotonic()
        with self._lock:
            if ticket is None or ticket not in self._answers:
                self._forget(now)
                ticket = secrets.token_urlsafe(16)
            self._answers[ticket] = (answer, now)
        return ticket

    def _forget(self, now: float) -> None:
        known = sorted(self._answers.items(), key=lambda item: item[1][1])
        old = [ticket for ticket, (_, asked) in known if now - asked > _FORGOTTEN]
        for ticket in old or [ticket for ticket, _ in known[: len(known) - _MOST]]:
            del self._answers[ticket]

    def ask(self, ticket: str) -> dict[str, Any] | None:
        """What the page wants its browser to know; None for a ticket that nobody knows."""
        with self._lock:
            known = self._answers.get(ticket)
            if known is None:
                return None
            self._answers[ticket] = (known[0], time.monotonic())
        return known[0]()


_tickets: Final = _Tickets()


def issue(ticket: str | None, answer: Answer) -> str:
    """A ticket by which a browser gets this answer; the given one, if it is still good."""
    return _tickets.issue(ticket, answer)


def ask(ticket: str) -> dict[str, Any] | None:
    """The answer that this ticket is for; None for one that is not known."""
    return _tickets.ask(ticket)


def route(base_path: str = "") -> Route:
    """The route that answers."""
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def pulse(request: Request) -> JSONResponse:
        answer = await run_in_threadpool(ask, request.query_params.get("ticket", ""))
        headers = {"Cache-Control": "no-store"}
        if answer is None:
            return JSONResponse({"error": "unknown ticket; load the page again"}, status_code=404, headers=headers)
        return JSONResponse(answer, headers=headers)

    prefix = base_path.strip("/")
    return Route(f"/{prefix}{PATH}" if prefix else PATH, pulse)
