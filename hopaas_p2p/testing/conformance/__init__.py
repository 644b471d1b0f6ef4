"""What every store must do, as tests that any store can be put to.

    class TestMine(StoreConformance, AcrossProcesses):
        @pytest.fixture
        def store(self, tmp_path):
            return MyStore(tmp_path)

`reopen` makes a second handle on the same place, as another process would have it; override it where a URL alone does
not suffice. Leave out `AcrossProcesses` for a store that lives in one process; add `RidingBeats` where beats ride.
"""

from hopaas_p2p.testing.conformance.beats import Beats, RidingBeats
from hopaas_p2p.testing.conformance.files import Files
from hopaas_p2p.testing.conformance.logs import Logs
from hopaas_p2p.testing.conformance.racing import AcrossProcesses, Racing
from hopaas_p2p.testing.conformance.snapshots import Snapshots

__all__ = ["AcrossProcesses", "RidingBeats", "StoreConformance"]


class StoreConformance(Logs, Racing, Snapshots, Beats, Files):
    """The contract of `hopaas_p2p.stores.base`, one test a promise."""
