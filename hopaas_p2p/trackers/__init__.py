"""Exports studies to the trackers that a group already uses, MLflow and Weights & Biases.

    export_to(study, MLflow("http://mlflow.example.org:5000"))    # sends the missing data now

The study stays where it is; a tracker gets a copy, which can be brought up to date at any time.
"""

from __future__ import annotations

from hopaas_p2p.study_like import StudyLike
from hopaas_p2p.trackers.base import Export, Tracker, TrackerRefused, TrackerUnreachable
from hopaas_p2p.trackers.follow import leave_link
from hopaas_p2p.trackers.mlflow import MLflow
from hopaas_p2p.trackers.wandb import WandB

__all__ = ["Export", "MLflow", "Tracker", "TrackerRefused", "TrackerUnreachable", "WandB", "export_to"]


def export_to(study: StudyLike, tracker: Tracker) -> int:
    """Bring a tracker up to date with a study; returns how many trials were sent. It can be repeated at any time.

    Raises:
        TrackerUnreachable: the tracker did not answer. Data sent before are kept, and the next call continues.
        ConfigurationError: the tracker's client library is not installed or not configured.
        Denied: the tracker does not let this user write.

    """
    try:
        sent = Export(study, tracker).sync()
        leave_link(study, tracker)
        return sent
    finally:
        tracker.close()
