"""Failures: grouped by reason, site and node; lost leases apart from errors; queue many again at once."""

from __future__ import annotations

from typing import Final

import streamlit as st

from dashboard_app import theme, url
from dashboard_app.frames import Frame
from dashboard_app.here import Here
from dashboard_app.redraw import live
from dashboard_app.views import failures
from dashboard_app.views.failures import Failure, Kind
from hopaas_p2p.errors import HopaasError

_ROWS: Final = 100
_SHOWN: Final = 30
_AT_ONCE: Final = 500


def show(here: Here) -> None:
    """The page."""
    theme.title("Failures", here)
    live(here, _body)


def _body(here: Here, frame: Frame) -> None:
    found: list[Failure] = frame.once(lambda one: failures.failures(one.state), "failures")
    if not found:
        theme.nothing("Nothing failed, and no lease was lost.")
        return
    counts = {kind: sum(one.kind == kind for one in found) for kind in failures.KINDS}
    theme.tiles(
        [
            ("errors of the objective", f"{counts['error']:,}", "the training code failed"),
            ("leases lost", f"{counts['lease']:,}", "silent, pre-empted or interrupted peers"),
            ("withdrawn", f"{counts['withdrawn']:,}", "by hand, or made needless by a late result"),
            ("stay failed", f"{len({one.number for one in found if one.over}):,}", "trials that nothing retried"),
        ]
    )
    for kind, what in failures.KINDS.items():
        if counts[kind]:
            _groups(frame, found, kind, what)
    _members(here, frame, found)


def _groups(frame: Frame, found: list[Failure], kind: Kind, what: str) -> None:
    rows = failures.groups([one for one in found if one.kind == kind])
    theme.heading(what[0].upper() + what[1:])
    cells = [
        [
            theme.safe(row["reason"]),
            theme.safe(row["site"]),
            theme.safe(row["node"]),
            f"{row['count']:,}",
            f"{row['stay failed']:,}",
            _trial(frame, int(row["newest"])),
        ]
        for row in rows.head(_ROWS).to_dict("records")
    ]
    headers = ("reason", "site", "node", "count", "stay failed", "newest trial")
    theme.table(headers, cells, label=what, numeric=(3, 4, 5))
    if len(rows) > _ROWS:
        theme.caption(f"{len(rows) - _ROWS:,} more groups are not shown.")


def _trial(frame: Frame, number: int) -> str:
    href = theme.safe(url.link("trial", study=frame.name, trial=number), longest=4000)
    return f'<a href="{href}" target="_self">{number}</a>'


def _members(here: Here, frame: Frame, found: list[Failure]) -> None:
    theme.heading("Look into one group")
    rows = failures.groups(found).head(_ROWS)
    keys = [(row["kind"], row["reason"], row["site"], row["node"]) for row in rows.to_dict("records")]
    counts = dict(zip(keys, rows["count"].tolist(), strict=True))
    chosen = st.selectbox(
        "Reason, site, node", keys, index=None, key="group", placeholder="choose one to see its trials",
        format_func=lambda key: f"{counts.get(key, 0):,} x {key[1]} | {key[2]} | {key[3]}",
    )  # fmt: skip
    if chosen is None:
        return
    members = failures.members(found, *chosen)
    if here.may_act:
        _requeue(here, members)
    cells = [
        [_trial(frame, one.number), f'<pre class="hp-reason">{theme.safe(one.full, longest=2000)}</pre>']
        for one in members[:_SHOWN]
    ]
    theme.table(("trial", "reason in full"), cells, label="trials of this group", numeric=(0,))
    if len(members) > _SHOWN:
        theme.caption(f"The newest {_SHOWN} of {len(members):,} are shown.")


def _requeue(here: Here, members: list[Failure]) -> None:
    """Queue again what stays failed, by number as it was seen; what was retried meanwhile is left alone."""
    numbers = sorted({one.number for one in members if one.over})[:_AT_ONCE]
    if not numbers:
        theme.caption("All of these were retried already.")
        return
    if st.button(f"Queue {len(numbers):,} again", key="requeue", icon=":material/replay:"):
        _confirm(here, numbers)


@st.dialog("Queue these trials again?")
def _confirm(here: Here, numbers: list[int]) -> None:
    st.write(f"{len(numbers):,} trials with the same parameters will wait for the next peers.")
    theme.caption(", ".join(str(number) for number in numbers[:40]) + (" …" if len(numbers) > 40 else ""))
    if not st.button("Queue them", type="primary", key="requeue-now"):
        return
    try:
        said = queue_again(here, numbers)
    except HopaasError as error:
        st.error(theme.plain(error, longest=1000))
        return
    st.success(theme.plain(said))


def queue_again(here: Here, numbers: list[int]) -> str:
    """Queue these trials again, but for those that were retried meanwhile; says what was done."""
    study = here.study()
    state = study.state
    again = failures.queued_again(state)
    still = [number for number in numbers if state.trials[number].retried_by is None and number not in again]
    queued = [number for number in map(study.requeue, still) if number is not None]
    here.feed.hurry(here.uuid)
    span = f" as trials {queued[0]} to {queued[-1]}" if queued else ""
    skipped = f"; {len(numbers) - len(still):,} were retried meanwhile" if len(still) < len(numbers) else ""
    return f"Queued {len(queued):,}{span}{skipped}."
