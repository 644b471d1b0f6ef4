"""Round trips through the tunnel, counted: as many as on a direct connection, and no more."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from hopaas_p2p.net.proxies import ServerAddress
from hopaas_p2p.open import open_store
from hopaas_p2p.stores.base import Outgoing
from hopaas_p2p.tunnel import client
from tests.support.latency import Relay
from tests.support.tunnel_fixtures import HOST, Centre


@pytest.fixture
def link(centre: Centre, monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    """Before a gateway that knows the token, as it does from the second peer on."""
    gateway = centre.gateway()
    monkeypatch.setenv("HOPAAS_TOKEN", centre.token().secret.reveal())
    client.connect([ServerAddress(HOST, gateway.port)], dbname="store").close()
    with Relay(gateway.port) as relay:
        yield relay


def test_connecting_costs_six_round_trips(link: Relay) -> None:
    """TCP, TLS, WebSocket, and three of SCRAM's; a direct connection asks for TLS first, so it needs seven."""

    def cost() -> float:
        """Of one connection. What the server has to say unasked, as tickets of TLS, may come between two requests."""
        link.reset()
        connection = client.connect([ServerAddress(HOST, link.port)], dbname="store")
        assert link.connections == 1
        found = link.round_trips
        connection.close()
        return found

    assert min(cost() for _ in range(3)) == 5, "TCP's own is not seen"


def test_an_exchange_costs_one_round_trip(link: Relay) -> None:
    with contextlib.closing(open_store(f"postgresql+https://{HOST}:{link.port}/store")) as store:
        log = store.log("u")
        log.exchange(None, 0)
        link.reset()
        for number in range(10):
            log.exchange(Outgoing(f"n{number}", b"x" * 1000), 0)
        assert link.round_trips == 10
        assert link.sent < 20_000
        assert link.connections == 0
