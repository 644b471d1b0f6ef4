"""Peers in processes of their own, to be killed: each notes what it was told is safe, before it goes on.

Store-agnostic: anything that a URL opens.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import optuna

import hopaas_p2p
from hopaas_p2p.core.state import State
from tests.support.processes import environment

STUDY = "peers"
_BODY = """
import os, sys
from pathlib import Path
import optuna
import hopaas_p2p

url, directory, name = sys.argv[1:]
optuna.logging.set_verbosity(optuna.logging.WARNING)
notes = os.open(f"{directory}/{name}.notes", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
storage = hopaas_p2p.open_storage(url, patience=60)
study = optuna.load_study(study_name="peers", storage=storage, sampler=optuna.samplers.RandomSampler())
while not Path(directory, "stop").exists():
    trial = study.ask()
    x = trial.suggest_float("x", 0, 1)
    trial.report(x, 0)
    study.tell(trial, x)
    os.write(notes, f"{trial.number} {x!r}\\n".encode())
storage.close()
"""


class Peers:
    """Some peers at work on one study, which is made here.

    Args:
        url: the store, with what is needed to log in.
        directory: for their notes.
        count: how many.
        lease_ttl: of the study, in seconds.

    """

    def __init__(self, url: str, directory: Path, count: int, *, lease_ttl: float = 120.0) -> None:
        self.url, self.directory = url, directory
        self._started = 0
        self._stop = directory / "stop"
        storage = hopaas_p2p.open_storage(url, lease_ttl=lease_ttl)
        optuna.create_study(study_name=STUDY, storage=storage)
        storage.close()
        self.running = [self._start() for _ in range(count)]

    def _start(self) -> subprocess.Popen[str]:
        name = f"peer-{self._started}"
        self._started += 1
        with (self.directory / f"{name}.errors").open("w") as errors:
            command = [sys.executable, "-c", _BODY, self.url, str(self.directory), name]
            return subprocess.Popen(command, stderr=errors, text=True, env=environment(**self._extra()))

    @staticmethod
    def _extra() -> dict[str, str]:
        return {key: value for key, value in os.environ.items() if key.startswith("HOPAAS_TOKEN")}

    def replace_one(self, chooser: random.Random) -> None:
        """Kill a peer as hard as can be, and start another."""
        index = chooser.randrange(len(self.running))
        self.running[index].kill()
        self.running[index].wait()
        self.running[index] = self._start()

    def acknowledged(self) -> dict[int, float]:
        """The trials that some peer was told are safe, with their values."""
        return dict(self._notes())

    def _notes(self) -> Iterator[tuple[int, float]]:
        for path in self.directory.glob("*.notes"):
            for line in path.read_text().splitlines(keepends=True):
                if line.endswith("\n"):
                    number, value = line.split()
                    yield int(number), float(value)

    def finish(self, seconds: float = 60.0) -> None:
        """Let them end; each has to end well."""
        self._stop.touch()
        codes = [peer.wait(seconds) for peer in self.running]
        errors = "".join(path.read_text() for path in self.directory.glob("*.errors"))
        assert set(codes) == {0}, errors[-3000:]

    def kill(self) -> None:
        """End what still runs, when a test has failed."""
        for peer in self.running:
            peer.kill()
            peer.wait()


def check(url: str, acknowledged: dict[int, float]) -> State:
    """That nothing acknowledged is lost or doubled; returns the study's state."""
    storage = hopaas_p2p.open_storage(url)
    try:
        study_id = storage.get_study_id_from_name(STUDY)
        part = storage.handle(study_id)
        storage.peer.pull(part.log)
        state = part.state
        assert [trial.number for trial in state.trials] == list(range(len(state.trials)))
        for number, value in acknowledged.items():
            assert state.trials[number].values == (value,), number
        return state
    finally:
        storage.close()
