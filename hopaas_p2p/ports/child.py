"""The command of one trial as a process: its arguments, its output, its signals.

It runs in its own process group, so that a signal reaches all processes that it starts, and no others. Its output goes
to a log file; the end of the output is kept in memory, for the result and for the reason of a failure. The group ends
with this process, however this process dies, because a guard outside both waits for the end of a pipe.
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

from hopaas_p2p.errors import TEMPORARY, InvalidInput
from hopaas_p2p.ports.command import DoesNotFit
from hopaas_p2p.runtime.interrupts import REASON_CHARACTERS, REASON_LINES

_TAIL: Final = 1 << 20  # bytes of output kept in memory; the line with the result may hold more than its value
_OUTPUT: Final = 1 << 16  # bytes kept of both streams together, from the beginning of a line
# A shell in its own session, which works on every platform. Unlike PR_SET_PDEATHSIG it reaches the whole group, and
# srun and mpirun get a SIGTERM, on which they end their remote processes. Batch systems may signal the guard, too.
_GUARD: Final = """
trap '' HUP INT QUIT TERM USR1 USR2
read group || exit
read end
kill -TERM -$group && sleep 5 && kill -KILL -$group
"""


class Child(subprocess.Popen[bytes]):
    """A running command in this environment. Its output is appended to `log`, a file descriptor, which this object
    closes.

    The command runs on these cores, or on all of this process's cores if none are given.

    Raises:
        DoesNotFit: an argument or a variable, or all of them together, exceed the system's limit.
        InvalidInput: there is no such program, or it may not be run.
        OSError, RuntimeError: this process is short of descriptors, processes, threads or memory.

    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str], log: int, cores: Collection[int] = ()) -> None:
        self.began = time.monotonic()
        self._log = open(log, "ab", buffering=0)  # noqa: SIM115, PTH123  # a descriptor
        self._guard = subprocess.Popen(  # first, so that the command is unguarded only for the time of one write
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
                os.sched_setaffinity(0, cores)  # for this thread only, from which the command inherits it
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
                raise DoesNotFit("the parameters are longer than the system allows for a program") from None
            if error.errno in TEMPORARY:
                raise
            raise InvalidInput(f"cannot run {command[0]!r}: {error.strerror}") from None
        finally:
            if before:
                os.sched_setaffinity(0, before)
        assert self._guard.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the guard was killed
            os.write(self._guard.stdin.fileno(), b"%d\n" % self.pid)
        self._tails = (bytearray(), bytearray())
        self._output = bytearray()
        self._readers: list[threading.Thread] = []
        try:
            for pair in zip((self.stdout, self.stderr), self._tails, strict=True):
                reader = threading.Thread(target=self._copy, args=pair, name="hopaas-output", daemon=True)
                reader.start()
                self._readers.append(reader)
        except RuntimeError:  # no thread can be started, and a command whose output nobody reads would hang
            self.close()
            raise

    def _copy(self, pipe: IO[bytes], tail: bytearray) -> None:
        with contextlib.suppress(OSError, ValueError):  # closed by `close`, or a full disk: the trial continues
            while data := os.read(pipe.fileno(), 1 << 16):
                tail += data
                del tail[:-_TAIL]
                self._output += data  # one atomic operation, because the other stream's thread does the same
                if len(self._output) > 2 * _OUTPUT:
                    del self._output[:-_OUTPUT]
                with contextlib.suppress(OSError):
                    self._log.write(data)

    def wait_for(self, seconds: float) -> int | None:
        """The command's exit code, negative for a signal; None if it is still running after `seconds`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(seconds)
        return None

    def signal_all(self, number: int) -> None:
        """Send a signal to the command and to all processes that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def _dismiss_guard(self) -> None:
        with self._guard:  # which closes the pipe and waits
            self._guard.kill()

    def close(self) -> None:
        """Read the rest of the output, and end processes that the command left behind."""
        self.signal_all(signal.SIGKILL)
        self._dismiss_guard()
        for reader in self._readers:
            reader.join(timeout=2.0)
        self.wait()
        if not any(reader.is_alive() for reader in self._readers):  # otherwise another process holds the pipe
            for file in (self.stdout, self.stderr, self._log):
                file.close()  # type: ignore[union-attr]  # all are there

    # --- its output ---

    @property
    def last_line(self) -> str:
        """The last line of the command's standard output."""
        return (bytes(self._tails[0]).decode(errors="replace").strip().splitlines() or [""])[-1]

    @property
    def printed(self) -> Any:
        """The result, if `last_line` is a JSON object with `value` or `values`; otherwise None."""
        try:
            said = json.loads(self.last_line)
        except (ValueError, RecursionError):
            return None
        return said.get("values", said.get("value", None)) if isinstance(said, dict) else None

    @property
    def output(self) -> bytes:
        """The last 64 KiB of output on both streams, in order of arrival, from the beginning of a line."""
        end = bytes(self._output[-_OUTPUT:])
        return end[end.find(b"\n") + 1 :] if len(end) == _OUTPUT else end

    def failure(self, code: int) -> str:
        """Why the command failed, for people: its exit status, and the last lines of its standard error."""
        lines = bytes(self._tails[1]).decode(errors="replace").strip().splitlines()[-REASON_LINES:]
        text = "\n".join(line[:500] for line in lines)[-REASON_CHARACTERS:]
        hint = "; did it run out of memory?" if code == -signal.SIGKILL else ""
        how = f"ended with {code}" if code >= 0 else f"was ended by {signal_name(-code)}{hint}"
        return f"the command {how}\n{text}".strip()


def signal_name(number: int) -> str:
    """SIGTERM for 15."""
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"
