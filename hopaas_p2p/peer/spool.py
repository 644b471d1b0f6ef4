"""The spool as one peer uses it: what could not be sent is kept there, and what others have left is sent."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any, Final

from hopaas_p2p import spool
from hopaas_p2p.core.state import State
from hopaas_p2p.errors import HopaasError, StoreUnreachable
from hopaas_p2p.peer.driver import LogDriver, study_driver
from hopaas_p2p.peer.session import LogSession
from hopaas_p2p.spool import Spooled
from hopaas_p2p.stores.base import Outgoing, Store

_log: Final = logging.getLogger("hopaas_p2p")
_EVERY: Final = 30.0  # seconds between looks into the spool


class SpoolSender:
    """The spool as one peer uses it."""

    def __init__(self, store: Store, *, now_us: Callable[[], int]) -> None:
        self._store = store
        self._now_us = now_us
        self._next = 0.0
        self._refused: set[Path] = set()
        """Files that the store does not take from this process, as of a study that was deleted."""

    def keep(self, uuid: str, log: LogDriver[State]) -> tuple[Path | None, str]:
        """Spool what could not be sent, if the end of a trial is among it: the file; or None, and why not."""
        with log.lock:
            ends = log.session.ends()
            commits = log.session.pack_for_spool() if ends else []
        if not ends or self._store.url.startswith("memory:"):
            return None, "there is nothing to keep" if not ends else "it lives in this process only"
        define = log.state.define
        name = define.name if define else ""
        path, why = spool.keep(commits, store=self._store.url, study=uuid, name=name, trials=ends, at=self._now_us())
        if path is not None:
            log.session.spooled.append(path)
        return path, why

    def keep_history(self, uuid: str, log: LogDriver[State]) -> None:
        """Spool this session's last acknowledged commits: of two histories of the log one may not have them.

        Once; a later call tries again if no disk took them.
        """
        with log.lock:
            commits = log.session.history()
            define = log.state.define
        if not commits or self._store.url.startswith("memory:"):
            return
        name = define.name if define else ""
        path, why = spool.keep_history(commits, store=self._store.url, study=uuid, name=name, at=self._now_us())
        if path is None:
            _log.error(
                "the last %d commits of this process, which the log may not have, were not kept: %s", len(commits), why
            )
        else:
            log.session.acknowledged.clear()
            _log.warning(
                "the last %d commits of this process, which the log may not have, are in %s", len(commits), path
            )

    def keep_all(self, logs: Mapping[str, LogDriver[State]]) -> None:
        """Like `keep`, at the end of the program. The start of a trial that never ran is withdrawn."""
        for uuid, log in logs.items():
            if log.session.deleted:
                continue
            ends = log.session.ends()
            kept = [spooled for path in log.session.spooled if (spooled := spool.read(path))]
            if kept and {number for one in kept for number in one.trials}.issuperset(ends):
                continue
            path, why = self.keep(uuid, log)
            if path is not None:
                _log.warning("kept in %s; sent at the next contact, or with: hopaas-p2p spool send", path)
            elif ends and not self._store.url.startswith("memory:"):
                _log.error("the ends of trials %s are lost with this process: %s", ends, why)
            else:
                log.withdraw()

    @staticmethod
    def forget(session: LogSession[Any]) -> None:
        """Remove its files: everything in them is acknowledged."""
        for path in session.spooled:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        session.spooled.clear()

    def send_others(
        self, logs: Mapping[str, LogDriver[State]], studies: Container[str], now: float, *, writer: str
    ) -> None:
        """Now and then, send what other processes of this user have left for one of this store's studies."""
        if now < self._next:
            return
        self._next = now + _EVERY
        own = {path for log in list(logs.values()) for path in log.session.spooled}
        for path, spooled in spool.waiting(self._store.url, studies):
            if path in own or path in self._refused:
                continue
            try:
                self.send(spooled, logs, writer=writer)
            except StoreUnreachable:
                raise
            except HopaasError as error:  # the others are not held up by it
                self._refused.add(path)
                _log.warning("%s was not sent and stays in the spool: %s", path, error)
            else:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)

    def send(self, spooled: Spooled, logs: Mapping[str, LogDriver[State]], *, writer: str) -> None:
        """Send what is in a file of the spool.

        Raises:
            StoreUnreachable: not this time.
            NoSuchStudy: it is of another store.

        """
        log = logs.get(spooled.study) or study_driver(
            self._store.log(spooled.study), writer=writer, now_us=self._now_us
        )
        log.send_for_another(list(map(Outgoing, spooled.nonces, spooled.payloads)))
