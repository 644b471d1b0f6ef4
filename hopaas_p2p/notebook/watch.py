"""`study.watch()`, which keeps the study's view and history in a cell up to date while other cells run."""

from __future__ import annotations

import shlex
import sys
import threading
import weakref
from typing import Any, Final

from hopaas_p2p.analysis.html import safe
from hopaas_p2p.errors import HopaasError, InvalidInput
from hopaas_p2p.notebook.frame import framed
from hopaas_p2p.notebook.summary import overview
from hopaas_p2p.peer.liveness import signs_of_life
from hopaas_p2p.study_like import StudyLike, looking_at

_present: Final[weakref.WeakValueDictionary[tuple[str, int], Watching]] = weakref.WeakValueDictionary()
"""(store, study) -> the study's view. Running a cell again replaces the view."""
_JOIN: Final = 5.0  # seconds; longer than an exchange with a responsive store


class Watching:
    """A view that its own thread keeps up to date until the study is over or cannot be read, or `stop()` is called."""

    def __init__(self, study: StudyLike, *, interval: float) -> None:
        if not interval > 0:
            raise InvalidInput(f"interval must be a positive number of seconds, got {interval}")
        display, html = _notebook(study.name)
        self._study = study
        self._interval = interval
        self._stopped = threading.Event()
        self._over = threading.Event()
        self._seen_at: tuple[int, dict[str, bool | None]] = (-1, {})
        self._seen = self._body = ""
        self._html = html
        place = (study.storage.url, study.study_id)
        before = _present.pop(place, None)
        if before is not None:
            before.stop()
        self._look()
        self._handle: Any = display(html(framed(self._body)), display_id=True)
        _present[place] = self
        self._thread = threading.Thread(target=self._follow, name="hopaas-watch", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"<watching {self._study.name!r}, {'stopped' if self._stopped.is_set() else 'live'}>"

    def _ipython_display_(self) -> None:
        """Show nothing when the view is a cell's last value, because it is already shown."""

    def stop(self) -> None:
        """Stop updating the view."""
        self._stopped.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(_JOIN)

    def wait(self, timeout: float | None = None) -> bool:
        """Block this cell until the view is no longer updated. Returns False after a timeout or `stop`, otherwise True.

        Args:
            timeout: seconds; None waits forever.

        """
        self._thread.join(timeout)  # Ctrl-C ends the wait
        return self._over.is_set()

    def _follow(self) -> None:
        while not self._over.is_set() and not self._stopped.wait(self._interval):
            if self._look():
                self._handle.update(self._html(framed(self._body)))

    def _look(self) -> bool:
        """Read the study; returns whether the view has changed."""
        before = self._body
        try:
            study = self._study
            over = study.is_over()  # read first, so that the view includes the last trials
            signs = signs_of_life(study.storage.peer, study.state)
            alive = {owner: sign.alive for owner, sign in signs.items()}
            with looking_at(study) as state:
                if (state.lsn, alive) != self._seen_at:
                    self._seen_at = (state.lsn, alive)
                    self._seen = overview(state, name=study.name, store=study.storage.url, signs=signs, chart=True)
            if over:
                self._over.set()
            self._body = self._seen
        except (HopaasError, KeyError) as error:  # the view keeps its last content, below the error
            said = str(error.args[0]) if error.args else type(error).__name__
            self._body = f'<p class="warn">{safe(said, longest=2000)}</p>{self._seen}'
            if not getattr(error, "retry", False):
                self._over.set()
        return self._body != before


def _notebook(name: str) -> tuple[Any, Any]:
    ipython = sys.modules.get("IPython")  # a notebook has loaded it
    if ipython is None or not hasattr(ipython.get_ipython(), "kernel"):
        raise InvalidInput(
            f"study.watch() works only in Jupyter; in a terminal use: hopaas-p2p watch {shlex.quote(name)}"
        )
    from IPython.display import HTML, display

    return display, HTML
