"""Failures: grouped by reason, site and node; lost leases apart from errors; queue many again at once."""

from __future__ import annotations

from typing import Final

import streamlit as st

from dashboard_app import theme
from dashboard_app.frames import Frame
from dashboard_app.page_context import PageContext
from dashboard_app.redraw import live
from dashboard_app.views import failures
from dashboard_app.views.failures import Failure, Key
from hopaas_p2p.analysis.facts import queued_again
from hopaas_p2p.errors import HopaasError

_ROWS: Final = 100
_SHOWN: Final = 30
_AT_ONCE: Final = 500


def show(page: PageContext) -> None:
    """The page."""
    page.title("Failures")
    live(page, _body)


def _body(page: PageContext, frame: Frame) -> None:
    found: list[Failure] = frame.once(lambda one: failures.failures(one.state), "failures")
    if not found:
        theme.nothing("Nothing failed, and no lease was lost.")
        return
    counts = {kind: sum(one.kind == kind for one in found) for kind in failures.KINDS}
    theme.tiles([
        ("errors in the objective", f"{counts['error']:,}", "the training code failed"),
        ("leases lost", f"{counts['lease']:,}", "silent, pre-empted or interrupted peers"),
        ("withdrawn", f"{counts['withdrawn']:,}", "by hand, or replaced by a late result"),
        ("not retried", f"{len({one.number for one in found if one.final}):,}", "trials that stay failed"),
    ])  # fmt: skip
    groups = failures.groups(found)
    for kind, what in failures.KINDS.items():
        if counts[kind]:
            theme.heading(what[0].upper() + what[1:])
            _table(frame, [(key, members) for key, members in groups.items() if key[0] == kind], what)
    _members(page, frame, dict(list(groups.items())[:_ROWS]))


def _table(frame: Frame, groups: list[tuple[Key, list[Failure]]], what: str) -> None:
    cells = [
        [*map(theme.safe, (failures.reason(members), *where)),
         f"{len(members):,}", f"{sum(one.final for one in members):,}", theme.trial_link(frame.name, members[0].number)]
        for (_, _, *where), members in groups[:_ROWS]
    ]  # fmt: skip
    headers = ("reason", "site", "node", "count", "not retried", "newest trial")
    theme.table(headers, cells, label=what, numeric=(3, 4, 5))
    if len(groups) > _ROWS:
        theme.caption(f"{len(groups) - _ROWS:,} more groups are not shown.")


def _reason(groups: dict[Key, list[Failure]], key: Key) -> str:
    members = groups.get(key)
    return failures.reason(members) if members else key[1]


def _members(page: PageContext, frame: Frame, groups: dict[Key, list[Failure]]) -> None:
    theme.heading("Inspect a group")
    chosen = st.selectbox(
        "Reason, site, node", list(groups), index=None, key="group", placeholder="Choose a group to see its trials",
        format_func=lambda key: f"{len(groups.get(key, ())):,} x {_reason(groups, key)} | {key[2]} | {key[3]}",
    )  # fmt: skip
    if chosen is None:
        return
    members = groups.get(chosen, [])
    if page.may_act:
        _requeue(page, members)
    cells = [
        [theme.trial_link(frame.name, one.number), f'<pre class="hp-reason">{theme.safe(one.full, longest=2000)}</pre>']
        for one in members[:_SHOWN]
    ]
    theme.table(("trial", "full reason"), cells, label="Trials of this group", numeric=(0,))
    if len(members) > _SHOWN:
        theme.caption(f"The newest {_SHOWN} of {len(members):,} are shown.")


def _requeue(page: PageContext, members: list[Failure]) -> None:
    """Queue again what stays failed, by number as it was seen; what was retried meanwhile is left alone."""
    numbers = sorted({one.number for one in members if one.final})[:_AT_ONCE]
    if not numbers:
        theme.caption("All of these have already been retried.")
    elif st.button(f"Queue {len(numbers):,} again", key="requeue", icon=":material/replay:"):
        _confirm(page, numbers)


@st.dialog("Queue these trials again?")
def _confirm(page: PageContext, numbers: list[int]) -> None:
    st.write(f"{len(numbers):,} trials with the same parameters will wait for the next peers.")
    theme.caption(", ".join(map(str, numbers[:40])) + (" …" if len(numbers) > 40 else ""))
    if not st.button("Queue them", type="primary", key="requeue-now"):
        return
    try:
        st.success(theme.plain(queue_again(page, numbers)))
    except HopaasError as error:
        theme.error(error)


def queue_again(page: PageContext, numbers: list[int]) -> str:
    """Queue these trials again, except those that had been retried in the meantime; says what was done."""
    study = page.study()
    state = study.state
    again = queued_again(state)
    still = [number for number in numbers if state.trials[number].retried_by is None and number not in again]
    queued = [number for number in map(study.requeue, still) if number is not None]
    page.cache.show_written(page.uuid)
    span = f" as trials {queued[0]} to {queued[-1]}" if queued else ""
    skipped = f"; {len(numbers) - len(still):,} had been retried in the meantime" if len(still) < len(numbers) else ""
    return f"Queued {len(queued):,}{span}{skipped}."
