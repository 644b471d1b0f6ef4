"""A study as one HTML file that needs nothing else: no network, no script, no server."""

from __future__ import annotations

import datetime
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from hopaas_p2p.core import snapshot
from hopaas_p2p.core.state import State
from hopaas_p2p.errors import ConfigurationError
from hopaas_p2p.report.page import render
from hopaas_p2p.stores.url import redacted

if TYPE_CHECKING:
    from hopaas_p2p.study import Study


def write_report(study: Study | State, path: str | Path) -> Path:
    """Write the report of a study and return where it is.

    10,000 trials take a few seconds and about half a megabyte: what is too much to draw is sampled, and says so. The
    study may go on meanwhile; the report shows one moment of it.

    Raises:
        ConfigurationError: the file cannot be written.

    """
    if isinstance(study, State):
        state = _copy(study)
        name, store = (state.define.name if state.define else "study"), ""
    else:
        part = study.storage.part(study.study_id)
        study.state  # brings the replica up to date  # noqa: B018
        with part.lock:
            state = _copy(part.replica.state)
        name, store = study.name, redacted(study.storage.url)
    text = render(state, name=name, store=store, now=datetime.datetime.now(datetime.UTC))
    return _write(Path(path).expanduser(), text)


def _copy(state: State) -> State:
    """One moment of the study, while the courier goes on."""
    return snapshot.load(snapshot.dump(state))


def _write(path: Path, text: str) -> Path:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        draft.write_text(text, encoding="utf-8", errors="replace")
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise ConfigurationError(f"cannot write the report to {path}: {error.strerror}") from None
    return path
