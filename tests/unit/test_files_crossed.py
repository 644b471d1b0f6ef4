"""How many of our files a trial passes through: a person who follows an ask to the disk reads as many."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Final

import optuna
import pytest

import hopaas_p2p

_ROOT: Final = str(Path(hopaas_p2p.__file__).parent)
_WARM: Final = 3  # trials, after which nothing is done for the first time


def crossed(call: Callable[[], object]) -> list[str]:
    """Those of our files in which this call runs a function, in this thread."""
    files: set[str] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(_ROOT):
            files.add(frame.f_code.co_filename.removeprefix(_ROOT))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(before)
    return sorted(files)


def ask_and_tell(study: optuna.Study | hopaas_p2p.Study) -> tuple[list[str], list[str]]:
    """What an ask and a tell of one trial cross."""
    asked: list[Any] = []
    ask = crossed(lambda: asked.append(study.ask()))
    (trial,) = asked
    trial.suggest_float("x", 0.0, 1.0)
    return ask, crossed(lambda: study.tell(trial, 1.0))


@pytest.mark.parametrize(("ours", "most_asking", "most_telling"), [(False, 19, 19), (True, 20, 20)])
def test_an_ask_and_a_tell_on_a_directory_cross_few_files(
    tmp_path: Path, *, ours: bool, most_asking: int, most_telling: int
) -> None:
    storage = hopaas_p2p.open_storage(tmp_path / "store")
    sampler = optuna.samplers.RandomSampler(seed=1)
    study: optuna.Study | hopaas_p2p.Study
    if ours:
        study = hopaas_p2p.open_study(storage, "study", sampler=sampler)
    else:
        study = optuna.create_study(storage=storage, sampler=sampler)
    for _ in range(_WARM):
        ask_and_tell(study)
    ask, tell = ask_and_tell(study)
    storage.close()
    assert len(ask) <= most_asking, ask
    assert len(tell) <= most_telling, tell
