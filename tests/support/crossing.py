"""What a call crosses: the files and functions of ours that run until it is over, in every thread."""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Final, TypeVar

import optuna

import hopaas_p2p

_ROOT: Final = str(Path(hopaas_p2p.__file__).parent) + "/"
_QUIET: Final = 0.02  # seconds in which none of our code runs, after which a call is over
_TRIALS: Final = 5
T = TypeVar("T")


class Watch:
    """Notes the functions of ours that are called."""

    def __init__(self) -> None:
        self.seen: set[CodeType] = set()
        self._last = 0.0

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(_ROOT):
            self._last = time.monotonic()
            self.seen.add(frame.f_code)

    def settle(self) -> None:
        """Return when none of our threads is at work."""
        while time.monotonic() - self._last < _QUIET:
            time.sleep(_QUIET / 4)


@contextmanager
def watched() -> Iterator[Watch]:
    """Watch this thread, and all that are started in the block."""
    watch, before, of_threads = Watch(), sys.getprofile(), threading.getprofile()
    threading.setprofile(watch)
    sys.setprofile(watch)
    try:
        yield watch
    finally:
        sys.setprofile(before)
        threading.setprofile(of_threads)  # type: ignore[arg-type]


def crossed_by(watch: Watch, call: Callable[[], T]) -> tuple[T, set[CodeType]]:
    """What this call returns, and the functions that it crosses."""
    watch.settle()
    watch.seen = set()
    found = call()
    watch.settle()
    return found, watch.seen


def files_of(functions: list[CodeType]) -> list[str]:
    """The files in which these are."""
    return sorted({one.co_filename.removeprefix(_ROOT) for one in functions})


def ask_and_tell(*, space: bool) -> tuple[list[CodeType], list[CodeType]]:
    """The functions that an ask and a tell on a directory mostly cross, for a study with a search space or without."""
    asked: Counter[CodeType] = Counter()
    told: Counter[CodeType] = Counter()
    with tempfile.TemporaryDirectory() as directory, watched() as watch:
        given = {"x": hopaas_p2p.Float(0, 1), "k": hopaas_p2p.Int(1, 9)} if space else None
        sampler = optuna.samplers.RandomSampler(seed=1)
        study = hopaas_p2p.open_study(directory, "study", space=given, sampler=sampler)
        for _ in range(20):  # nothing is done for the first time after these
            study.tell(study.ask(), 0.5)
        for _ in range(_TRIALS):
            trial, seen = crossed_by(watch, study.ask)
            asked.update(seen)
            _, seen = crossed_by(watch, lambda: study.tell(trial, 0.5))  # noqa: B023
            told.update(seen)
        study.close()
    mostly = [[one for one, times in counted.items() if times > _TRIALS / 2] for counted in (asked, told)]
    return mostly[0], mostly[1]
