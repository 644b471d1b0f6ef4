"""The connection between a trial's command and its worker: a Unix socket with one request or reply in JSON per line.

The requests are those of `verbs`. The socket is in a private directory (0700). Its path is short, because the system
allows 107 characters.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Final

from hopaas_p2p.errors import BY_NAME, TEMPORARY, HopaasError, InvalidInput, StoreUnreachable
from hopaas_p2p.ports import client
from hopaas_p2p.ports.verbs import Reply, TrialVerbs, answered

PREFIX: Final = "unix:"
_LONGEST_PATH: Final = 100
_LONGEST_LINE: Final = 1 << 20
_PAUSE: Final = 0.1  # seconds between attempts to serve a connection without a descriptor or a thread


class TrialSocketServer:
    """Serves one trial's command, from threads of its own, until `close`."""

    def __init__(self, verbs: TrialVerbs) -> None:
        self._verbs = verbs
        self.directory = _private_directory()
        self.ticket: Final = f"{PREFIX}{self.directory / 's'}"
        """The command's HOPAAS_TICKET."""
        with contextlib.ExitStack() as stack:
            stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
            self._listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            self._listener.bind(str(self.directory / "s"))
            self._listener.listen(16)
            threading.Thread(target=self._accept, name="hopaas-trial-socket", daemon=True).start()
            stack.pop_all()  # `close` does that

    def close(self) -> None:
        """Stop answering, once a request in progress is finished."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._verbs.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError as error:
                if error.errno not in TEMPORARY:  # it was closed
                    return
                time.sleep(_PAUSE)  # until there are descriptors again
            else:
                serving = threading.Thread(target=self._serve, args=(connection,), name="hopaas-trial", daemon=True)
                while True:
                    with contextlib.suppress(RuntimeError):  # this user is short of processes
                        serving.start()
                        break
                    time.sleep(_PAUSE)

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection, connection.makefile("rwb") as lines:  # which writes when it ends
            while line := lines.readline(_LONGEST_LINE):
                reply = answered(line, lambda said: self._verbs.do(str(said.pop("do", "")), **said))
                lines.write(json.dumps(reply).encode() + b"\n")
                lines.flush()


def _private_directory() -> Path:
    """A new directory that only this user may enter, with a short path (some batch systems set TMPDIR to long ones)."""
    for base in (tempfile.gettempdir(), os.environ.get("XDG_RUNTIME_DIR"), "/tmp", "/var/tmp"):  # noqa: S108
        if base and len(base) + 24 <= _LONGEST_PATH and os.access(base, os.W_OK):
            return Path(tempfile.mkdtemp(prefix="hopaas-", dir=base))
    raise InvalidInput("no temporary directory has a path short enough for a socket; set TMPDIR, for example to /tmp")


def request(ticket: str, verb: str, /, **said: Any) -> Reply:
    """Send a request to the worker whose socket this ticket names, like `TrialVerbs.do` in the worker's own process.

    Raises:
        HopaasError: the worker's error, of the same class as without a worker.
        StoreUnreachable: the worker is gone.

    """
    path = ticket.removeprefix(PREFIX)
    try:
        reply: Reply = client.request(path, {**said, "do": verb})
    except (OSError, ValueError, RecursionError) as error:
        raise StoreUnreachable(f"the worker of this trial does not answer at {path}: {error}") from None
    if not reply.get("ok"):
        code = reply.get("code", StoreUnreachable.exit_code)
        kind = next((one for one in BY_NAME.values() if one.exit_code == code), HopaasError)
        raise kind(str(reply.get("error")))
    return reply
