"""Signs of life, overwritten and seen."""

from __future__ import annotations

import pytest

from hopaas_p2p.stores.base import Beat, Log, Store
from hopaas_p2p.testing.commits import outgoing
from hopaas_p2p.testing.conformance.base import Conformance


class Beats(Conformance):
    """Beats that go alone."""

    def test_a_beat_is_overwritten_and_seen_by_everyone(self, store: Store) -> None:
        other = self.reopen(store)
        assert other.beats(["ann"]) == {}
        for value in ("ann:1", "ann:2"):
            store.beat(Beat("ann", value))
            assert other.beats(["ann"]) == store.beats(["ann"])
            assert len(store.beats(["ann"])) == 1
        self.assert_values_differ(store)

    def assert_values_differ(self, store: Store) -> None:
        """Only the change of a beat means something: a store may show another value than was given."""
        before = store.beats(["ann"])["ann"]
        store.beat(Beat("ann", "ann:3"))
        assert store.beats(["ann"])["ann"] != before

    def test_beats_are_found_for_those_who_have_any(self, store: Store) -> None:
        store.beat(Beat("ann", "ann:1"))
        store.beat(Beat("bob-with_a-LONG_name0", "bob:1"))
        assert set(store.beats(["ann", "bob-with_a-LONG_name0", "eve"])) == {"ann", "bob-with_a-LONG_name0"}
        assert store.beats([]) == {}

    @pytest.mark.parametrize(
        "name",
        [
            "",
            ".",
            "..",
            "../../v1/meta.json",
            "/etc/passwd",
            "a/b",
            "a" * 300,
            "new\nline",
            "nul\0",
            "ünïcode",
            "' OR 1",
        ],
        ids=["empty", "dot", "dots", "upwards", "root", "slash", "long", "newline", "nul", "unicode", "quote"],
    )
    def test_a_peer_of_an_impossible_name_never_beats(self, store: Store, name: str) -> None:
        store.beat(Beat("ann", "ann:1"))
        assert set(store.beats([name, "ann"])) == {"ann"}


class RidingBeats(Conformance):
    """For stores in which a beat costs nothing extra inside an exchange."""

    def test_a_beat_that_rides_is_seen(self, store: Store, log: Log) -> None:
        assert store.beats_ride
        log.exchange(None, 0, Beat("ann", "ann:1"))
        before = store.beats(["ann"])
        assert set(before) == {"ann"}
        log.exchange(outgoing("a"), 0, Beat("ann", "ann:2"))
        assert store.beats(["ann"]) != before
