"""Pruners to hand to a study: Optuna's, with the same arguments, which also decide before the first trial is complete.

With many peers most of a study's trials begin before any has ended: Optuna's pruners let all of those go on.
"""

from __future__ import annotations

from hopaas_p2p.search.pruners import MedianPruner, PercentilePruner, SuccessiveHalvingPruner

__all__ = ["MedianPruner", "PercentilePruner", "SuccessiveHalvingPruner"]
