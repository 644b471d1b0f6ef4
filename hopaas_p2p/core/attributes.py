"""System attributes of studies and trials that say how a study is searched, and by which rules they go."""

from __future__ import annotations

from typing import Final

SAMPLER: Final = "hopaas:sampler"
PRUNER: Final = "hopaas:pruner"
REPEATS: Final = "hopaas:repeats"
REPLICATES: Final = "hopaas:replicates"
FIDELITY: Final = "hopaas:fidelity"
"""System attribute of a study: its rungs or its population, see `core.fidelity`; null for none."""
LEARNED: Final = "hopaas:learned"
"""System attribute of a study: what it learned from others, a list of `priors.PriorRecord`."""
SPACE: Final = "hopaas:space"
"""System attribute of a study whose space was given after it was created."""
OWNERS_ATTRIBUTES: Final = frozenset({SAMPLER, PRUNER, REPEATS, REPLICATES, FIDELITY, LEARNED, SPACE})
"""System attributes of a study that say how it is searched: only its owners set them."""
REPLICATE: Final = "hopaas:replicate"
"""System attribute of a trial: {"of": the first trial with these parameters, "seed": from 1}."""
REUSED: Final = "hopaas:reused"
"""System attribute of a trial: the number of the one whose values it has."""
AGAIN: Final = "hopaas:again"
"""System attribute of a trial that was queued again by hand: the number of the one that it repeats."""
LATE_VALUES: Final = "hopaas:late_values"
"""System attribute of a failed trial: the values, as JSON, that came when another result had its place."""
REPEATS_POLICIES: Final = ("avoid", "allow", "reuse")
MOST_REPLICATES: Final = 1000
CONTINUES: Final = "hopaas:continues"
"""System attribute of a trial: the number of the paused one that it goes on from."""
COPIES: Final = "hopaas:copies"
"""System attribute of a trial in a population: the number of the paused one of another member whose checkpoint it has,
and whose parameters it has with some changes."""
RESUMED: Final = "hopaas:resumed"
"""System attribute of a trial in a population: the lowest step that it resumed from, or `records.FROM_START`."""
CMAES: Final = "hopaas:cmaes"
"""System attribute of a trial: the generation of the CMA-ES sampler that it belongs to, and the trials that made it."""
ALERTS: Final = "hopaas:alerts"
"""System attribute of a study: who sends its alerts, and what was sent."""
COPIED: Final = "hopaas:copied_from"
"""System attribute of a copied trial: of which study and trial, and who ran it, see `moving.records.origin`."""
METRIC_NAMES: Final = "study:metric_names"
"""Optuna's: one per objective."""
OF_EXPORTS: Final = ("hopaas:definition", "hopaas:rest")
"""What an export to Optuna's storage writes there; never in a log."""
