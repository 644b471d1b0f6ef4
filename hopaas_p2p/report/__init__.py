"""A study as one self-contained HTML file: no network, no script, no server."""

from __future__ import annotations

import datetime
from pathlib import Path

from hopaas_p2p.atomic import replace_atomically
from hopaas_p2p.core import snapshot
from hopaas_p2p.core.state import State
from hopaas_p2p.errors import ConfigurationError
from hopaas_p2p.stores.url import redacted
from hopaas_p2p.study_like import StudyLike, looking_at


def write_report(study: StudyLike | State, path: str | Path) -> Path:
    """Write the report of a study and return its path.

    10,000 trials take a few seconds and about half a megabyte; larger data is sampled, as the captions say. The study
    may continue meanwhile; the report shows one moment of it.

    Raises:
        ConfigurationError: the file cannot be written.

    """
    from hopaas_p2p.report.page import render  # here, because commands that write none should not wait for Optuna

    if isinstance(study, State):
        state = _copy(study)
        name, store = (state.define.name if state.define else "study"), ""
    else:
        with looking_at(study) as present:
            state = _copy(present)
        name, store = study.name, redacted(study.storage.url)
    text = render(state, name=name, store=store, now=datetime.datetime.now(datetime.UTC))
    return _write(Path(path).expanduser(), text)


def _copy(state: State) -> State:
    """A copy of the State, while the peer continues."""
    return snapshot.load(snapshot.dump(state))


def _write(path: Path, text: str) -> Path:
    try:
        with replace_atomically(path) as draft:
            draft.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise ConfigurationError(f"cannot write the report to {path}: {error.strerror}") from None
    return path
