"""Through HTTPS to Postgres: a study, SQLAlchemy, and the two ends of a connection."""

from __future__ import annotations

import contextlib

import pytest

import hopaas_p2p
from tests.processes import SPACE, until
from tests.tunnel_fixtures import Centre, tunnels


def test_a_study_is_run_through_a_gateway(centre: Centre, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = centre.gateway()
    monkeypatch.setenv("HOPAAS_TOKEN", centre.token().secret.reveal())
    url = centre.url(gateway.port)
    with contextlib.closing(hopaas_p2p.open_study(url, "s", space=SPACE, budget=5)) as study:
        study.optimize(lambda trial: trial.params["lr"])
        assert len(study.state.trials) == 5
        assert study.storage.url == url
        assert tunnels() == 1
    until(lambda: tunnels() == 0)
    assert len(gateway.events("opened")) == 1
