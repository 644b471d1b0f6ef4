"""The changes in a study since the last read, for readers that keep arrays and do not need a frozen trial for each.

Finished trials arrive as the columns of their packed blocks, so a study of 100,000 trials is read without an object per
trial. The others, and changed ones, arrive as frozen trials; this process's own as it sees them.
"""

from __future__ import annotations

from hopaas_p2p.core.state import BLOCK, State
from hopaas_p2p.search.known import Changes, ReadBlock
from hopaas_p2p.storage.handle import StudyHandle


class StudyReader:
    """A `search.known.TrialReader` of one study. Not safe for use by several threads at once."""

    def __init__(self, handle: StudyHandle) -> None:
        self._handle = handle
        self._changed = handle.log.session.cursor()
        self._state: State | None = None
        self._own: set[int] = set()
        """Trials of this process that were returned: what is set on them does not appear in the log at once."""

    def read(self) -> Changes:
        """The changes, as fresh as reads promise."""
        handle, changed = self._handle, self._changed
        handle.refresh()
        with handle.lock:
            state, view = handle.state, handle.view
            view.catch_up(state)
            count, numbers = len(state.trials), set(changed)
            blocks: list[ReadBlock] = []
            if state is not self._state:
                for columns in [state.trials.closed[index].columns() for index in sorted(state.trials.closed)]:
                    apart = [columns.first + place for place, rare in columns.rare.items() if rare.dists or rare.system]
                    blocks.append(ReadBlock(columns, [view.trial(number) for number in apart]))
                numbers = {one for index in state.trials.open for one in range(index * BLOCK, (index + 1) * BLOCK)}
            own = set(view.owned)
            numbers |= own | self._own
            trials = [view.trial(number) for number in sorted(numbers) if number < count]
            reset, self._state, self._own = state is not self._state, state, own
            changed.clear()
            return Changes(reset, count, blocks, trials, view.dists)
