"""What people import: `open_study`, and the Study it gives; see `study.study`."""

from hopaas_p2p.interrupts import describe
from hopaas_p2p.study.definition import Space
from hopaas_p2p.study.study import Study, open_study

__all__ = ["Space", "Study", "describe", "open_study"]
