"""How many wrong tokens may be tried: of one address, of all, and by whom they are counted."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from hopaas_p2p.remote.rate_limit import RateLimiter, RequestRefused


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets time pass."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def later(seconds: float) -> None:
        now[0] += seconds

    return later


def tries(limiter: RateLimiter, address: str, times: int) -> int:
    """How many of so many wrong tokens were asked about."""
    for number in range(times):
        try:
            limiter.check(address)
        except RequestRefused:
            return number
        limiter.record_failure(address)
    return times


def test_an_address_has_twenty_and_then_one_a_second(passes: Callable[[float], None]) -> None:
    limiter = RateLimiter()
    assert tries(limiter, "192.0.2.1", 100) == 20
    with pytest.raises(RequestRefused) as refused:
        limiter.check("192.0.2.1")
    assert (refused.value.status, refused.value.retry) == (429, 1.0)
    limiter.check("192.0.2.2")
    passes(3.0)
    assert tries(limiter, "192.0.2.1", 100) == 3
    passes(3600.0)
    assert tries(limiter, "192.0.2.1", 100) == 20


def test_all_addresses_together_have_a_hundred_and_then_ten_a_second(passes: Callable[[float], None]) -> None:
    limiter = RateLimiter()
    assert sum(tries(limiter, f"192.0.2.{number}", 5) for number in range(100)) == 100
    with pytest.raises(RequestRefused) as refused:
        limiter.check("198.51.100.1")
    assert refused.value.status == 503
    passes(1.0)
    assert sum(tries(limiter, f"198.51.100.{number}", 5) for number in range(100)) == 10


def test_a_subscriber_of_ipv6_counts_as_one(passes: Callable[[float], None]) -> None:
    limiter = RateLimiter()
    assert sum(tries(limiter, f"2001:db8::{number:x}", 1) for number in range(50)) == 20
    limiter.check("2001:db8:0:1::1")
    limiter.check("not an address")


def test_memory_of_addresses_is_bounded(passes: Callable[[float], None]) -> None:
    limiter = RateLimiter()
    for number in range(5000):
        limiter.record_failure(f"10.0.{number // 250}.{number % 250}")
    assert len(limiter._by_network) == 4096
