"""Pruners for a study: Optuna's, with the same arguments, but able to decide before the first trial is complete.

With many peers, most of a study's trials start before any has ended. Optuna's pruners would let all of them continue.
"""

from __future__ import annotations

from hopaas_p2p.search.pruners import MedianPruner, PercentilePruner, SuccessiveHalvingPruner

__all__ = ["MedianPruner", "PercentilePruner", "SuccessiveHalvingPruner"]
