"""What a member of a population has from another one, and from which step its trials resumed."""

from __future__ import annotations

from hopaas_p2p.core.attributes import COPIES, RESUMED
from hopaas_p2p.core.state import Trial


def copied_trial(trial: Trial) -> int | None:
    """The trial of another member whose checkpoint this one began with, and whose parameters it has, perturbed."""
    number = int(trial.system.get(COPIES, trial.number))
    return number if number < trial.number else None


def resumed_step(trial: Trial) -> int | None:
    """The lowest step that an attempt at this trial resumed from, or `FROM_START`; None: it never looked."""
    return int(trial.system[RESUMED]) if RESUMED in trial.system else None
