"""Writes the report of a study as one self-contained HTML file, which needs no network, script or server."""

from __future__ import annotations

import datetime
from pathlib import Path

from hopaas_p2p.core import snapshot
from hopaas_p2p.open import redacted
from hopaas_p2p.runtime.arguments import expanded
from hopaas_p2p.runtime.atomic import replace_atomically
from hopaas_p2p.study_like import StudyLike, looking_at


def write_report(study: StudyLike, path: str | Path) -> Path:
    """Write the report of a study and return its path.

    For 10,000 trials, this takes a few seconds, and the file has about half a megabyte. Larger data are sampled, as the
    captions note. The study may continue meanwhile. The report shows the study's state at one time.

    Raises:
        OSError: the file cannot be written.

    """
    from hopaas_p2p.report.page import render  # imported here, so that other commands do not wait for Optuna

    with looking_at(study) as present:
        state = snapshot.load(snapshot.dump(present))  # a copy, so that the peer can continue
    now, target = datetime.datetime.now(datetime.UTC), expanded(path)
    text = render(state, name=study.name, store=redacted(study.storage.url), now=now)
    with replace_atomically(target) as draft:
        draft.write_text(text, encoding="utf-8", errors="replace")
    return target
