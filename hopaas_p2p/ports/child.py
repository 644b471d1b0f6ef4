"""The command of one trial as a process: its arguments, its output, its signals.

It runs in a process group of its own, so that a signal reaches all that it starts, and none that it should not. Its
output goes to a log file; the ends of it are kept, for the result and for the reason of a failure. The group ends with
this process, however that dies: a guard outside of both waits for the end of a pipe.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from typing import IO, Any, Final

from hopaas_p2p.errors import InvalidInput
from hopaas_p2p.ports.command import DoesNotFit

_TAIL: Final = 1 << 20  # bytes of output kept in memory; the line of a result may hold more than its value
_OUTPUT: Final = 1 << 16  # bytes of both streams together that are kept, from the beginning of a line
_REASON_LINES: Final = 12
_REASON_CHARACTERS: Final = 2000
# A shell of its own session, which every platform has. Unlike PR_SET_PDEATHSIG it reaches the whole group, and srun and
# mpirun get the SIGTERM with which they end what they started elsewhere. A batch system signals it, too.
_GUARD: Final = """
trap '' HUP INT QUIT TERM USR1 USR2
read group || exit
read end
kill -TERM -$group && sleep 5 && kill -KILL -$group
"""


class Child(subprocess.Popen[bytes]):
    """A running command in this environment, whose output is appended to `log`, a file's descriptor, which it closes.

    It runs on these cores, or on all of this process if there are none.

    Raises:
        DoesNotFit: an argument or a variable is longer than the system allows, or all of them are.
        InvalidInput: there is no such program, or it may not be run.

    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str], log: int, cores: Collection[int] = ()) -> None:
        self.began = time.monotonic()
        self._log = open(log, "ab", buffering=0)  # noqa: SIM115, PTH123  # a descriptor
        self._guard = subprocess.Popen(  # first: the command is never without it for longer than a write takes
            ["/bin/sh", "-c", _GUARD],
            env={"PATH": os.defpath},
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        before = os.sched_getaffinity(0) if cores else ()
        try:
            if cores:
                os.sched_setaffinity(0, cores)  # of this thread only, from which the command inherits it
            super().__init__(
                command,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            self._dismiss_guard()
            self._log.close()
            if error.errno == errno.E2BIG:
                raise DoesNotFit("the parameters are longer than the system gives to a program") from None
            raise InvalidInput(f"cannot run {command[0]!r}: {error.strerror}") from None
        finally:
            if before:
                os.sched_setaffinity(0, before)
        assert self._guard.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # somebody ended it
            os.write(self._guard.stdin.fileno(), b"%d\n" % self.pid)
        self._tails = (bytearray(), bytearray())
        self._output = bytearray()
        self._readers = []
        for pair in zip((self.stdout, self.stderr), self._tails, strict=True):
            self._readers.append(threading.Thread(target=self._copy, args=pair, name="hopaas-output", daemon=True))
            self._readers[-1].start()

    def _copy(self, pipe: IO[bytes], tail: bytearray) -> None:
        with contextlib.suppress(OSError, ValueError):  # closed by `close`, or a full disk: the trial goes on
            while data := os.read(pipe.fileno(), 1 << 16):
                tail += data
                del tail[:-_TAIL]
                self._output += data  # one operation: the other stream's thread does the same
                if len(self._output) > 2 * _OUTPUT:
                    del self._output[:-_OUTPUT]
                with contextlib.suppress(OSError):
                    self._log.write(data)

    def wait_for(self, seconds: float) -> int | None:
        """Its exit code, negative for a signal; None if it still runs after so many seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(seconds)
        return None

    def signal_all(self, number: int) -> None:
        """Send a signal to it, and to all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def _dismiss_guard(self) -> None:
        with self._guard:  # which closes the pipe and waits
            self._guard.kill()

    def close(self) -> None:
        """Take in the last of its output, and end what it left behind."""
        self.signal_all(signal.SIGKILL)
        self._dismiss_guard()
        for reader in self._readers:
            reader.join(timeout=2.0)
        self.wait()
        if not any(reader.is_alive() for reader in self._readers):  # else something else holds the pipe
            for file in (self.stdout, self.stderr, self._log):
                file.close()  # type: ignore[union-attr]  # all are there

    # --- what it said ---

    @property
    def last_line(self) -> str:
        """The last line of its output."""
        return (bytes(self._tails[0]).decode(errors="replace").strip().splitlines() or [""])[-1]

    @property
    def printed(self) -> Any:
        """The result, if the last line of its output is a JSON object with `value` or `values`; None if it is none."""
        try:
            said = json.loads(self.last_line)
        except (ValueError, RecursionError):
            return None
        return said.get("values", said.get("value", None)) if isinstance(said, dict) else None

    @property
    def output(self) -> bytes:
        """The last 64 kB of what it wrote to both streams, in the order in which it came, from a line's beginning."""
        end = bytes(self._output[-_OUTPUT:])
        return end[end.find(b"\n") + 1 :] if len(end) == _OUTPUT else end

    def failure(self, code: int) -> str:
        """Why it failed, for people: how it ended, and the last lines of its errors."""
        lines = bytes(self._tails[1]).decode(errors="replace").strip().splitlines()[-_REASON_LINES:]
        text = "\n".join(line[:500] for line in lines)[-_REASON_CHARACTERS:]
        hint = "; was it out of memory?" if code == -signal.SIGKILL else ""
        how = f"ended with {code}" if code >= 0 else f"was ended by {signal_name(-code)}{hint}"
        return f"the command {how}\n{text}".strip()


def signal_name(number: int) -> str:
    """SIGTERM for 15."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
