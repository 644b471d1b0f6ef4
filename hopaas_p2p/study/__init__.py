"""The public API: `open_study`, and the Study that it returns; see `study.study`."""

from hopaas_p2p.study.definition import StudyPolicy
from hopaas_p2p.study.schedule import Schedule, ScheduleEntry
from hopaas_p2p.study.study import Study, open_study

__all__ = ["Schedule", "ScheduleEntry", "Study", "StudyPolicy", "open_study"]
