"""The blocks of a snapshot come from a database as they are, by whatever way a peer reaches it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from hopaas_p2p import access
from hopaas_p2p.core import snapshot
from hopaas_p2p.core.snapshot import CorruptSnapshot
from hopaas_p2p.errors import Denied, StoreCorrupt, StoreUnreachable
from hopaas_p2p.stores.postgres.copying import BinaryRows
from hopaas_p2p.stores.postgres.store import PostgresLog, PostgresStore
from hopaas_p2p.testing.commits import outgoing, study_snapshot
from tests.support.latency import Relay
from tests.support.pgbouncer import find_pgbouncer, transaction_pooler
from tests.support.postgres import Server
from tests.support.postgres_fixtures import OWNER, missing
from tests.support.postgres_people import Place

DATA = study_snapshot(5000)


@pytest.fixture
def stored(any_postgres_url: str) -> Iterator[PostgresLog]:
    """The log of a study of 5,000 trials, with a snapshot."""
    with contextlib.closing(PostgresStore(any_postgres_url)) as store:
        log = store.log("study")
        log.exchange(outgoing("first"), 0)
        log.put_snapshot(1, DATA)
        yield log


@pytest.fixture
def far(stored: PostgresLog, any_postgres: Server) -> Iterator[tuple[PostgresLog, Relay]]:
    """The same log over a link."""
    with Relay(any_postgres.port) as relay:
        url = any_postgres.url("store", user=OWNER, port=relay.port)
        with contextlib.closing(PostgresStore(url)) as store:
            yield store.log("study"), relay


def test_a_snapshot_travels_in_hardly_more_bytes_than_it_has(far: tuple[PostgresLog, Relay]) -> None:
    log, relay = far
    log.exchange(None, 0)
    relay.reset()
    assert log.newest_snapshot() == (1, DATA)
    assert relay.round_trips == 2, "the head, and the blocks"
    assert len(DATA) < relay.received < 1.1 * len(DATA) + 2000


def test_a_link_that_is_cut_among_the_blocks_is_made_anew(far: tuple[PostgresLog, Relay]) -> None:
    log, relay = far
    log.exchange(None, 0)
    names = list(dict(log._blocks(_names(log))))
    relay.cut("mid-reply")
    assert list(dict(log._blocks(names))) == names
    assert relay.cuts == 1


def _names(log: PostgresLog) -> list[str]:
    return sorted(name for (name,) in log._store.call("block_names", log="study"))


def test_a_server_that_is_gone_among_the_blocks_is_no_damage(far: tuple[PostgresLog, Relay]) -> None:
    log, relay = far
    names = _names(log)
    relay.refuse()
    with pytest.raises(StoreUnreachable):
        dict(log._blocks(names))
    relay.refuse(False)
    assert log.newest_snapshot() == (1, DATA)


def test_a_block_that_was_changed_in_the_database_is_refused(stored: PostgresLog, any_postgres: Server) -> None:
    changed = "UPDATE hopaas.blocks SET data = set_byte(data, 9, (get_byte(data, 9) + 1) % 256)"
    any_postgres.execute(f"{changed} WHERE name LIKE '00000002-%%'", database="store")
    _, data = stored.newest_snapshot() or (0, b"")
    assert data != DATA
    with pytest.raises(CorruptSnapshot):
        snapshot.load(data)


def test_in_a_database_without_the_newest_functions_blocks_are_read_as_text(
    stored: PostgresLog, any_postgres: Server, any_postgres_url: str
) -> None:
    any_postgres.execute("DROP FUNCTION hopaas.blocks_v2", database="store")
    try:
        assert stored.newest_snapshot() == (1, DATA)
    finally:
        access.initialise(any_postgres.url("store"))
    assert stored.newest_snapshot() == (1, DATA)


def test_blocks_come_through_a_transaction_pooler(stored: PostgresLog, any_postgres: Server) -> None:
    if find_pgbouncer() is None:
        missing("pgbouncer")
    with transaction_pooler(any_postgres, OWNER) as port, contextlib.ExitStack() as stack:
        store = stack.enter_context(contextlib.closing(PostgresStore(any_postgres.url("store", user=OWNER, port=port))))
        for _ in range(3):
            assert store.log("study").newest_snapshot() == (1, DATA)


def test_a_viewer_reads_the_blocks_and_somebody_without_a_grant_does_not(place: Place) -> None:
    ann, eve, sam = place.person("ann"), place.person("eve"), place.person("sam")
    place.study(ann)
    uuid = place.uuid()
    access.grant(ann, "s", "eve", "viewer")
    place.store(ann).log(uuid).put_snapshot(1, DATA)
    assert place.store(eve).log(uuid).newest_snapshot() == (1, DATA)
    with pytest.raises(Denied, match="no grant for this study"):
        place.store(sam).copy("copy_blocks", log=uuid, names=["any"])


# --- the format --------------------------------------------------------------------------------------------------

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
ROWS = b"\0\2\0\0\0\1a\0\0\0\3xyz" + b"\0\2\0\0\0\2bc\0\0\0\0"
END = b"\xff\xff"


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_rows_are_found_in_pieces_of_any_length(size: int) -> None:
    copied, whole = BinaryRows(), HEADER + ROWS + END
    for at in range(0, len(whole), size):
        copied.write(whole[at : at + size])
    assert copied.rows == [[b"a", b"xyz"], [b"bc", b""]]


@pytest.mark.parametrize("begun", [b"name\tdata\n" * 3, HEADER[:-1] + b"\1" + ROWS, HEADER + b"\0\1\xff\xff\xff\xff"])
def test_another_format_is_refused(begun: bytes) -> None:
    with pytest.raises(StoreCorrupt):
        BinaryRows().write(begun)
