"""One colour for each state of a trial and for the best trial, in monitor, charts, report and notebook.

All colours are visible and distinct on light and dark pages. Colour is never the only distinction.
"""

from __future__ import annotations

from typing import Final

COMPLETE: Final = "#3b7be8"
PRUNED: Final = "#a3854f"
PAUSED: Final = "#7c8798"
FAILED: Final = "#d9485f"
RUNNING: Final = "#0f9d8a"
WAITING: Final = "#7c8798"
LOST: Final = "#b0306a"
BEST: Final = "#1f9a58"
