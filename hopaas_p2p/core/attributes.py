"""Names of the system attributes with which this package marks studies and trials, and limits on their values."""

from __future__ import annotations

from typing import Final

SAMPLER: Final = "hopaas:sampler"
PRUNER: Final = "hopaas:pruner"
REPEATS: Final = "hopaas:repeats"
REPLICATES: Final = "hopaas:replicates"
FIDELITY: Final = "hopaas:fidelity"
"""System attribute of a study: its rungs or its population (see `core.fidelity`); null if it has neither."""
LEARNED: Final = "hopaas:learned"
"""System attribute of a study: its priors from other studies, a list of `priors.PriorRecord`."""
SPACE: Final = "hopaas:space"
"""System attribute of a study whose space was given after it was created."""
LOWERED: Final = "hopaas:lowered"
"""System attribute of a study: the budget, in words, after somebody lowered it. Scripts do not raise it again."""
OWNERS_ATTRIBUTES: Final = frozenset({SAMPLER, PRUNER, REPEATS, REPLICATES, FIDELITY, LEARNED, SPACE, LOWERED})
"""System attributes of a study that define how it is searched, and that only its owners may set."""
REPLICATE: Final = "hopaas:replicate"
"""System attribute of a trial: {"of": the first trial with these parameters, "seed": from 1}."""
REUSED: Final = "hopaas:reused"
"""System attribute of a trial: the number of the trial whose values it reuses."""
AGAIN: Final = "hopaas:again"
"""System attribute of a trial that was requeued by hand: the number of the trial that it repeats."""
LATE_VALUES: Final = "hopaas:late_values"
"""System attribute of a failed trial: the values, as JSON, that arrived when another result already had its place."""
REPEATS_POLICIES: Final = ("avoid", "allow", "reuse")
MOST_REPLICATES: Final = 1000
CONTINUES: Final = "hopaas:continues"
"""System attribute of a trial: the number of the paused trial that it continues."""
COPIES: Final = "hopaas:copies"
"""System attribute of a trial in a population: the number of another member's paused trial, whose checkpoint it starts
from, and whose parameters it has, perturbed."""
RESUMED: Final = "hopaas:resumed"
"""System attribute of a trial in a population: the lowest step that it resumed from, or `records.FROM_START`."""
CMAES: Final = "hopaas:cmaes"
"""System attribute of a trial: its generation in the CMA-ES sampler, and the trials from which that was computed."""
COPIED: Final = "hopaas:copied_from"
"""System attribute of a copied trial: its original, and where that ran; see `moving.records.origin`."""
METRIC_NAMES: Final = "study:metric_names"
"""Optuna's attribute of a study: one name per objective."""
EXPORTER: Final = "hopaas:exporter:"
"""Prefix of a study's system attribute about a tracker, followed by a digest of the tracker's place. The value holds
the `peer` that exports to it, and the link."""
OF_EXPORTS: Final = ("hopaas:definition", "hopaas:rest")
"""Attributes that an export writes to Optuna's storage, and that a log refuses."""
