"""A bucket that answers nothing but 500 for a whole minute. In a file of its own: others run while this one waits."""

from __future__ import annotations

import time

import hopaas_p2p
from hopaas_p2p.testing import s3_faults
from hopaas_p2p.testing.s3_faults import FaultProxy
from hopaas_p2p.testing.seaweed import Seaweed


def test_a_trial_is_told_across_a_minute_of_500s(s3_server: Seaweed) -> None:
    with FaultProxy(s3_server.port) as proxy:
        url = s3_server.url(s3_server.new_prefix(), endpoint=proxy.endpoint)
        study = hopaas_p2p.open_study(url, "s", patience=300.0)
        trial = study.ask()
        end = time.monotonic() + 60.0
        proxy.always = lambda _: s3_faults.BROKEN if time.monotonic() < end else None
        study.tell(trial, 1.0)
        assert time.monotonic() >= end
        assert [trial.state.name for trial in study.state.trials] == ["COMPLETE"]
        study.storage.close()
