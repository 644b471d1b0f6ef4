"""The same log gives the same State everywhere: on every machine, from every snapshot, in every time zone."""

from __future__ import annotations

import ast
import contextlib
import math
import os
import random
import re
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from hopaas_p2p.analysis import table as analysis_table
from hopaas_p2p.analysis.facts import row_of
from hopaas_p2p.analysis.failures import failures
from hopaas_p2p.analysis.table import TrialTable
from hopaas_p2p.core import blocks, codec, snapshot
from hopaas_p2p.core import state as core_state
from hopaas_p2p.core.admission import next_start
from hopaas_p2p.core.apply import apply
from hopaas_p2p.core.attributes import FIDELITY
from hopaas_p2p.core.fidelity import Population, Rungs, encode_fidelity
from hopaas_p2p.core.ledger import announced, announced_number
from hopaas_p2p.core.records import (
    FROM_START,
    Budget,
    Categorical,
    Checkpoint,
    Commit,
    Float,
    Int,
    PeerDrain,
    PeerJoin,
    Price,
    Record,
    StudyControl,
    StudySet,
    TrialCheckpoint,
    TrialClaim,
    TrialCreate,
    TrialFinish,
    TrialReclaim,
    TrialRelease,
    TrialSet,
    TrialStop,
    TrialTakeOver,
    Until,
    Used,
)
from hopaas_p2p.core.state import State
from hopaas_p2p.core.validity import possible_attributes, possible_metric, possible_system
from hopaas_p2p.peer.session import study_client
from hopaas_p2p.storage.frozen import FrozenTrialCache
from hopaas_p2p.stores.base import Outgoing
from hopaas_p2p.stores.memory import MemoryLog
from hopaas_p2p.testing.commits import study_snapshot
from tests.support.scribe import COMPLETE, FAIL, PRUNED, WAITING, Scribe, X, defined

PRICE = Price(core_hour=0.1)
_REPLAY = """
import sys
from pathlib import Path
from hopaas_p2p.core import codec, snapshot
from hopaas_p2p.core.apply import apply
from hopaas_p2p.core.state import State
log = Path(sys.argv[1]).read_bytes()
state, at = State(), 0
while at < len(log):
    size = int.from_bytes(log[at : at + 4], "big")
    apply(state, state.lsn + 1, codec.decode(log[at + 4 : at + 4 + size]))
    at += 4 + size
print(snapshot.digest(state))
"""


def _some_record(random_: random.Random, scribe: Scribe, peer: str) -> Record:
    trials = scribe.state.trials
    number = random_.randrange(len(trials) + 1)
    epoch = trials[number].epoch if number < len(trials) else 1
    mine = [n for n in scribe.state.running if trials[n].owner == peer] or [number]
    own = random_.choice(mine)
    lease = trials[own].epoch if own < len(trials) else 1
    name = random_.choice("xyz")
    given = {"x": X, "y": Int(0, 9), "z": Categorical((None, True, 2, "c"))}[name]
    return random_.choice(
        [
            TrialCreate(prefer_waiting=True),
            TrialCreate(),
            TrialCreate(WAITING, params={"x": random_.random()}, dists={"x": X}),
            TrialCreate(COMPLETE, values=(random_.random(),), start=random_.randrange(1 << 50), end=5),
            TrialClaim(number),
            TrialSet(own, lease, {name: 1.0}, {name: given}, {random_.randrange(9): random_.random()}, {"u": "[1]"}),
            TrialSet(own, lease, {"x": 1.5}, {"x": Float(0.0, 2.0)}, {}, {}, {"s": '"ü"'}),
            TrialFinish(own, lease, COMPLETE, (random_.choice([random_.random(), float("inf")]),)),
            TrialFinish(own, lease, PRUNED, used=Used(random_.randrange(1 << 40), random_.choice([None, 7]))),
            TrialFinish(number, max(epoch - 1, 0), COMPLETE, (2.0,)),
            TrialFinish(own, lease, FAIL, None, "why"),
            TrialRelease(own, lease),
            TrialReclaim(number, epoch),
            TrialTakeOver(number, epoch, COMPLETE, (3.0,), None, "ann"),
            TrialStop(number, epoch, "why"),
            StudySet(user={name: "1"}),
            StudyControl(None, random_.randrange(50, 500)),
            StudyControl(limits=Budget(epochs=random_.randrange(50, 500), euro=1e6, prices={"*": PRICE})),
            PeerJoin({"host": peer, "cores": "3", "site": peer}),
        ]
    )


def random_log(seed: int, length: int) -> list[bytes]:
    """A log in which everything happens, some of it several times, and some of it is garbage."""
    random_ = random.Random(seed)
    scribe = Scribe(defined(budget=200, limits=Budget(until=Until(trials_without_gain=150)) if seed % 2 else Budget()))
    payloads = [codec.encode(scribe.log[0][0])]
    while len(payloads) < length:
        if random_.random() < 0.05:
            payloads.append(random_.choice([random_.randbytes(20), payloads[random_.randrange(len(payloads))]]))
            scribe.read(payloads[-1])
            continue
        peer = random_.choice(["ann", "bob", "eve"])
        scribe.say(peer, *[_some_record(random_, scribe, peer) for _ in range(random_.randint(1, 3))])
        payloads.append(codec.encode(scribe.log[-1][0]))
    return payloads


def replayed(payloads: list[bytes], state: State | None = None) -> State:
    state = state or State()
    for payload in payloads:
        apply(state, state.lsn + 1, codec.decode(payload))
    return state


def _replayed_elsewhere(path: Path, *options: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *options, "-c", _REPLAY, str(path)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_replay_gives_the_same_digest_whatever_the_time_zone_hash_seed_and_optimisation(tmp_path: Path) -> None:
    payloads = random_log(1, 600)
    path = tmp_path / "log"
    path.write_bytes(b"".join(len(payload).to_bytes(4, "big") + payload for payload in payloads))
    here = snapshot.digest(replayed(payloads))

    there = [
        _replayed_elsewhere(path, TZ="Pacific/Kiritimati", PYTHONHASHSEED="1"),
        _replayed_elsewhere(path, TZ="America/St_Johns", PYTHONHASHSEED="2"),
        _replayed_elsewhere(path, "-O", TZ="Asia/Kathmandu", PYTHONHASHSEED="3"),
    ]

    assert there == [here] * 3


@pytest.mark.parametrize("seed", range(3))
def test_snapshot_and_tail_are_the_replay_at_every_lsn(seed: int) -> None:
    payloads = random_log(seed, 200)
    whole = snapshot.digest(replayed(payloads))
    growing = State()
    for lsn, payload in enumerate(payloads, start=1):
        apply(growing, lsn, codec.decode(payload))
        joined = snapshot.load(snapshot.dump(growing))
        assert snapshot.digest(joined) == snapshot.digest(growing)
        assert snapshot.digest(replayed(payloads[lsn:], joined)) == whole


@pytest.mark.parametrize("seed", range(3))
def test_a_state_and_its_snapshot_agree_on_every_single_commit_after_it(seed: int) -> None:
    payloads = random_log(seed + 10, 200)
    state = replayed(payloads[:100])
    joined = snapshot.load(snapshot.dump(state))
    for lsn, payload in enumerate(payloads[100:], start=101):
        assert apply(joined, lsn, codec.decode(payload)) == apply(state, lsn, codec.decode(payload))
        assert snapshot.digest(joined) == snapshot.digest(state)


def _eventful_log(seed: int, length: int) -> list[bytes]:
    """A log of a study with rungs or a population, in which trials pause, resume, have replicates and come late."""
    random_ = random.Random(seed)
    scribe = Scribe(
        defined(budget=random_.choice([None, 40]), attempts=3, interrupted=random_.choice(["fail", "prune"]))
    )
    kinds = Rungs(1, 9, 3), Rungs(1, 27, 3, brackets=3, whole=2), Population(size=4, every=2, max=8), None
    while len(scribe.log) < length:
        peer, trials = random_.choice(["ann", "bob", "eve"]), scribe.state.trials
        mine = [trials[one] for one in scribe.state.running if trials[one].owner == peer]
        past = [(one.number, two.epoch) for one in trials for two in one.history if two.owner == peer]
        number, epoch = random_.choice(past or [(0, 1)])
        said: list[Record] = [
            TrialCreate(prefer_waiting=True, params={"x": random_.random()}, dists={"x": X}, replicates=2),
            TrialCreate(prefer_waiting=True),
            TrialSet(number, epoch, reports={1: 0.1}, params={"x": 0.5}, dists={"x": X}),
            TrialFinish(number, epoch, COMPLETE, (random_.random(),)),
            PeerDrain(peer=random_.choice(["ann", "bob"]), off=random_.random() < 0.7),
            _some_record(random_, scribe, peer),
        ]
        if not random_.randrange(20):
            said = [StudySet(system={FIDELITY: encode_fidelity(random_.choice(kinds))})]
        for one in mine:
            step = max(one.reports, default=-1) + 1
            report = {step: random_.choice([random_.random(), math.nan])}
            said += [
                TrialSet(one.number, one.epoch, reports=report, metrics={"m": report}),
                TrialSet(one.number, one.epoch, system={"constraints": random_.choice(["[1.0]", "[-1.0]"])}),
                TrialSet(one.number, one.epoch, resumed_from=random_.choice([FROM_START, max(step - 1, 0)])),
                TrialCheckpoint(one.number, one.epoch, Checkpoint(max(step - 1, 0), f"key{step}", 1, "0" * 64)),
                *[TrialFinish(one.number, one.epoch, PRUNED, paused=True)] * 2,
                TrialFinish(one.number, one.epoch, COMPLETE, (random_.random(),)),
            ]
        scribe.say(peer, *random_.sample(said, min(len(said), 3)))
    return [codec.encode(commit) for commit, _ in scribe.log]


def _seen(state: State) -> list[object]:
    """What peers and people see of a study that is in no digest, because it follows from the log."""
    rules, numbers = state.configurations, range(len(state.trials))
    asks = [next_start(state, peer, no_new=why) for peer in ("ann", "bob", "new") for why in ("", "space")]
    pauses = [(rules.root(one), rules.standing(one), rules.pauses_at(one), rules.sources(one)) for one in numbers]
    table, rows = TrialTable.of(state), [row_of(state, one) for one in numbers]
    columns = [getattr(table, name).tolist() for name in TrialTable.COLUMNS]
    cache = FrozenTrialCache(0, set(), allow_pickles=False)
    cache.catch_up(state)
    frozen = [trial.__dict__ for trial in cache.trials(None)]
    order = list(state.waiting), list(state.running), state.counts, list(state.trials.results())
    return [snapshot.digest(state), asks, pauses, rules.places(), order, columns, rows, frozen, failures(state)]


@pytest.mark.parametrize("seed", range(8))
def test_who_joins_from_a_snapshot_sees_and_decides_what_who_read_everything_does(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (core_state, sys.modules["hopaas_p2p.core.apply"], blocks, snapshot, analysis_table):
        monkeypatch.setattr(module, "BLOCK", 4)  # so that some are closed, and opened again
    payloads = _eventful_log(seed, 150)
    states = [State()]
    for lsn, commit in enumerate(map(codec.decode, payloads), start=1):
        first, *others = [apply(state, lsn, commit) for state in states]
        assert all(verdicts == first for verdicts in others)
        if lsn % 30 == 0:
            states.append(snapshot.load(snapshot.dump(replayed(payloads[:lsn]))))
            first_seen, *seen = [repr(_seen(state)) for state in states]
            assert all(one == first_seen for one in seen)
    assert any(state.trials.closed for state in states)


def test_blocks_of_finished_trials_are_kept_and_still_give_the_same_digest() -> None:
    scribe = Scribe()
    for _ in range(3):
        scribe.say("ann", *[TrialCreate(COMPLETE, values=(1.0,)) for _ in range(900)])
        snapshot.dump(scribe.state)
    assert len(scribe.state.trials.closed) == 2
    kept = snapshot.digest(scribe.state)
    scribe.state.trials.opened(0)
    assert snapshot.digest(scribe.state) == kept


def test_the_digest_does_not_depend_on_how_a_library_compresses(monkeypatch: pytest.MonkeyPatch) -> None:
    payloads = random_log(5, 200)
    state, there = replayed(payloads), replayed(payloads)
    here, bytes_here = snapshot.digest(state), snapshot.dump(state)
    monkeypatch.setattr(snapshot.zlib, "compress", lambda data, _level, packed=zlib.compress: packed(data, 9))
    assert snapshot.dump(there) != bytes_here
    assert snapshot.digest(there) == here


def test_a_snapshot_that_is_cut_anywhere_is_corrupt() -> None:
    data = snapshot.dump(replayed(random_log(2, 60)))
    for length in [*range(60), *range(60, len(data), 37), len(data) - 1]:
        with pytest.raises(snapshot.CorruptSnapshot):
            snapshot.load(data[:length])


def test_a_snapshot_with_any_byte_changed_is_corrupt() -> None:
    data = bytearray(snapshot.dump(replayed(random_log(2, 60))))
    for position in [*range(60), *range(60, len(data), 37), len(data) - 1]:
        data[position] ^= 0x41
        with pytest.raises(snapshot.CorruptSnapshot):
            snapshot.load(bytes(data))
        data[position] ^= 0x41
    assert snapshot.load(bytes(data)).lsn == 60


@pytest.mark.parametrize("seed", range(20))
def test_a_snapshot_of_nonsense_with_a_right_checksum_is_corrupt_and_raises_nothing_else(seed: int) -> None:
    import hashlib

    random_ = random.Random(seed)
    body = bytearray(snapshot.dump(replayed(random_log(3, 60)))[32:])
    for _ in range(3):
        body[random_.randrange(len(body))] = random_.randrange(256)
    forged = snapshot._MAGIC + hashlib.blake2b(body, digest_size=16).digest() + bytes(body)
    try:
        state = snapshot.load(forged)
    except snapshot.CorruptSnapshot:
        return
    assert isinstance(state, State)


@pytest.mark.parametrize("index", [[], [0, 5], [1], [-2]], ids=["none", "too many", "another", "negative"])
def test_a_snapshot_whose_index_disagrees_with_its_trials_is_corrupt(index: list[int]) -> None:
    scribe = Scribe()
    scribe.enqueue_trial()
    scribe.start("ann", state=FAIL)
    scribe.state.waiting = dict.fromkeys(index)
    with pytest.raises(snapshot.CorruptSnapshot):
        snapshot.load(snapshot.dump(scribe.state))


def test_a_snapshot_is_split_into_a_head_and_the_blocks_that_will_not_change() -> None:
    data = study_snapshot(5000, waiting=(1500,))
    head, blocks = snapshot.split(data)
    assert [int(name[:8]) for name in blocks] == [0, 2, 3]
    assert len(head) < len(data) - sum(map(len, blocks.values())) + 500
    assert snapshot.names_in(head) == list(blocks)
    assert snapshot.whole(head, blocks) == data
    with pytest.raises(snapshot.CorruptSnapshot):
        snapshot.whole(head, dict(list(blocks.items())[1:]))
    with pytest.raises(snapshot.CorruptSnapshot):
        snapshot.whole(head[:-1], blocks)


@pytest.mark.parametrize("name", ["../../../etc/passwd", "", "00000000-" + "g" * 32, "x0000000-" + "0" * 32])
def test_a_head_that_names_anything_else_than_a_block_is_corrupt(name: str) -> None:
    header = snapshot._decode_header(snapshot.unseal(snapshot._MAGIC, snapshot.dump(State())))
    header.names = [name]
    head = snapshot.seal(snapshot._MAGIC, msgspec.msgpack.encode(header))
    with pytest.raises(snapshot.CorruptSnapshot):
        snapshot.names_in(head)


def _with_peers(count: int, *, later: int) -> State:
    """A study in which so many peers ran a trial each, and so many commits came after them."""
    state = State()

    def say(writer: str, seq: int, *records: Record) -> None:
        apply(state, state.lsn + 1, Commit(writer, seq, writer, 0, records))

    say("founder", 1, defined())
    for number in range(count):
        peer = f"peer-{number:011d}"
        say(peer, 1, PeerJoin({"host": f"node{number % 40}", "site": "there", "pid": str(number)}), TrialCreate())
        say(peer, 2, TrialFinish(number, 1, COMPLETE, (1.0,)))
    for seq in range(2, later + 2):
        say("founder", seq, PeerJoin({}))
    return state


def test_quiet_peers_are_written_once_and_nothing_of_them_is_forgotten() -> None:
    state = _with_peers(1000, later=4100)
    data = snapshot.dump(state)
    head, parts = snapshot.split(data)
    assert [name[:8] for name in parts] == ["w0000001", "w0000002", "p0000000", "p0000001", "p0000002"]
    assert sum(len(part) for name, part in parts.items()) < 1000 * 60
    joined = snapshot.load(snapshot.whole(head, parts))
    assert list(joined.writers.items()) == list(state.writers.items())
    assert list(joined.peers.items()) == list(state.peers.items())
    assert snapshot.digest(joined) == snapshot.digest(state)
    again = Commit("peer-00000000007", 2, "peer-00000000007", 0, (TrialFinish(7, 1, COMPLETE, (1.0,)),))
    assert apply(joined, joined.lsn + 1, again) == state.writers["peer-00000000007"].verdicts
    assert joined.refusals == {"duplicate": 1}


def test_a_quiet_peer_that_comes_back_is_in_the_next_snapshot() -> None:
    state = _with_peers(600, later=4100)
    _, before = snapshot.split(snapshot.dump(state))
    apply(state, state.lsn + 1, Commit("peer-00000000300", 3, "peer-00000000300", 0, (TrialCreate(),)))
    head, parts = snapshot.split(snapshot.dump(state))
    assert len(parts) == len(before) - 2
    joined = snapshot.load(snapshot.whole(head, parts))
    assert snapshot.digest(joined) == snapshot.digest(state)
    assert joined.writers["peer-00000000300"].seq == 3


def test_a_block_keeps_its_name_while_the_study_grows() -> None:
    _, before = snapshot.split(study_snapshot(3000))
    _, after = snapshot.split(study_snapshot(6000))
    assert before.items() <= after.items()


def test_bytes_that_are_no_snapshot_of_a_study_are_not_split() -> None:
    for data in (b"", b"anything", study_snapshot(5000)[:-1], study_snapshot(10)):
        assert snapshot.split(data) == (data, {})
        assert snapshot.whole(data, {}) == data


def test_an_empty_state_has_a_snapshot_too() -> None:
    assert snapshot.digest(snapshot.load(snapshot.dump(State()))) == snapshot.digest(State())


@pytest.mark.parametrize(
    "damage",
    [lambda data: b"", lambda data: data[:-1], lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda data: b"\0" * 99],
    ids=["empty", "cut short", "one bit changed", "zeros"],
)
def test_a_replica_that_finds_a_corrupt_snapshot_replays_the_log(damage: object) -> None:
    payloads = random_log(4, 50)
    log = MemoryLog()
    for number, payload in enumerate(payloads):
        log.exchange(Outgoing(str(number), payload), number)
    log.put_snapshot(30, damage(snapshot.dump(replayed(payloads[:30]))))  # type: ignore[operator]

    replica = study_client(log, writer="newcomer", now_us=lambda: 0)
    replica.exchange()

    assert snapshot.digest(replica.state) == snapshot.digest(replayed(payloads))


def test_a_replica_joins_from_a_sound_snapshot_and_reads_only_the_tail() -> None:
    payloads = random_log(4, 50)
    log = MemoryLog()
    for number, payload in enumerate(payloads):
        log.exchange(Outgoing(str(number), payload), number)
    log.put_snapshot(30, snapshot.dump(replayed(payloads[:30])))
    asked: list[int] = []
    exchange = log.exchange
    log.exchange = lambda outgoing, since, beat=None: asked.append(since) or exchange(outgoing, since, beat)  # type: ignore[method-assign]

    replica = study_client(log, writer="newcomer", now_us=lambda: 0)
    replica.exchange()

    assert min(asked) == 30
    assert snapshot.digest(replica.state) == snapshot.digest(replayed(payloads))


# --- on every version of Python, in every program ---

_TABLES = {"isprintable", "isalnum", "isalpha", "isdecimal", "isdigit", "isidentifier", "isnumeric", "isspace"}
_TABLES |= {"casefold", "lower", "upper", "swapcase", "title", "capitalize", "istitle", "islower", "isupper"}
_NEW_LETTER, _NEW_DIGIT = "\U00011f02", "\U00011f53"  # since Unicode 15, which Python 3.11 does not know


def _foreign_texts(tree: ast.AST) -> Iterator[str]:
    """What the version of Python or a setting of the program decides, besides where a person is told about a name."""
    own = [one for one in ast.walk(tree) if getattr(one, "name", "") in ("checked_name", "mixes_alphabets")]
    spared = {id(node) for one in own for node in ast.walk(one)}
    given = {id(one.func) for one in ast.walk(tree) if isinstance(one, ast.Call) and one.args}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.search(r"\\[wWdDsSbB]", node.value):
            yield ast.unparse(node)
        elif isinstance(node, ast.Attribute) and id(node) not in spared:
            empty = node.attr in ("strip", "lstrip", "rstrip", "split", "rsplit", "splitlines")
            table = node.attr in _TABLES or ast.unparse(node.value) == "unicodedata"
            if table or (empty and id(node) not in given):
                yield ast.unparse(node)
        elif (
            isinstance(node, ast.ExceptHandler) and node.type is not None and "RecursionError" in ast.unparse(node.type)
        ):
            yield "RecursionError"


def test_nothing_that_the_log_decides_depends_on_the_tables_of_a_python_or_on_the_depth_of_calls() -> None:
    found = {
        f"{path.name}: {text}"
        for path in Path(core_state.__file__).parent.glob("*.py")
        for text in _foreign_texts(ast.parse(path.read_text()))
    }
    assert found == {
        "catalog.py: RecursionError",  # in a snapshot: the log is read instead
        "codec.py: RecursionError",  # in `nonce_of`, which decides nothing
        "leases.py: text.isdigit",  # of ASCII
        "snapshot.py: RecursionError",  # the log is read instead
    }


def test_characters_that_only_some_pythons_know_are_judged_as_all_others_are() -> None:
    for letter in ("x", "é", _NEW_LETTER, "\u0378"):
        assert not possible_system({f"{letter}:generation": '"abc"'})
        assert not possible_system({f"{letter}:parent:1": '"abc"'})
        assert possible_metric(letter)
    for digit in ("\u0663", _NEW_DIGIT):
        assert possible_system({f"completed_rung_{digit}": '"abc"'})
        assert announced_number(digit) == 0
        assert announced("a", "b", digit, digit, digit)[2:] == (0, 0, 0)
    assert announced_number(" 3.5\n") == 3.5
    for name in (
        "",
        "  ",
        "a\nb",
        "\x7f",
        "\xa0",
        "a\u200bb",
        "\u2028",
        "\ufeff",
        "\ue000",
        "\U000e0041",
        "\U0010ffff",
    ):
        assert not possible_metric(name)


def _verdicts_on(*records: Record) -> tuple[object, ...]:
    scribe = Scribe(defined())
    scribe.say("eve", *records)
    return snapshot.digest(scribe.state), scribe.state.refusals


def test_how_many_digits_a_program_lets_python_read_changes_no_verdict() -> None:
    long, limit = "9" * 5000, sys.get_int_max_str_digits()
    texts = {
        "fixed_params": f'{{"x":{long}}}',
        "search_space": f'{{"x":[{long}]}}',
        "hopaas:artifact:a": f'{{"x":{long}}}',
    }
    texts |= {"hopaas:cmaes": f'{{"generation":1,"parents":[],"z":{long}}}'}
    records = [TrialCreate(COMPLETE, values=(1.0,), system={key: text}) for key, text in texts.items()]
    records += [TrialCreate(COMPLETE, values=(1.0,), user={"a": f'["\\ud800",{long}]'})]
    records += [TrialCreate(COMPLETE, values=(1.0,), system={"fixed_params": f'{{"x":{"9" * 640}}}'})]
    found = []
    try:
        for digits in (limit, 0, 640):
            sys.set_int_max_str_digits(digits)
            found.append(_verdicts_on(*records))
    finally:
        sys.set_int_max_str_digits(limit)
    assert found[0] == found[1] == found[2]
    assert found[0][1] == {"malformed": 5}


def test_half_a_surrogate_pair_is_found_however_it_is_written() -> None:
    for half in (r"\ud800", r"\uDFFF", r"\ud83d\ud83d\ude00", r"\ude00\ud83d", r"\ud83d\\\ude00", r"\\\ud800"):
        assert not possible_attributes({"a": f'["{half}"]'})
    for whole in (
        r"\ud83d\ude00",
        r"\uD83D\uDE00\ud83d\uDE00",
        r"\\ud800",
        r"\\\\ude00",
        r"\ud7ff\ue000",
        "\U0001f600",
    ):
        assert possible_attributes({"a": f'["{whole}"]'})


def test_a_record_that_is_read_deep_in_a_programs_calls_is_judged_as_elsewhere_or_not_at_all() -> None:
    deep = TrialCreate(COMPLETE, values=(1.0,), system={"fixed_params": f'{{"x":{"[" * 62}{"]" * 62}}}'})
    payload = codec.encode(Commit("eve", 1, "eve", 1, (deep,)))
    scribe = Scribe(defined())
    scribe.read(payload)
    there, known = set(), snapshot.dump(Scribe(defined()).state)

    def called(depth: int) -> None:
        if depth:
            called(depth - 1)
        else:
            state = snapshot.load(known)
            apply(state, 2, codec.decode(payload))
            there.add(snapshot.digest(state))

    for depth in range(sys.getrecursionlimit()):
        with contextlib.suppress(RecursionError, snapshot.CorruptSnapshot):
            called(depth)
    assert there == {snapshot.digest(scribe.state)}


@pytest.mark.parametrize("depth", [190, 300, 990, 5000, 100_000])
@pytest.mark.parametrize("around", [b"\x91", b"\x81\xa1x", b"\xdc\x00\x02\x90", b"\xdf\x00\x00\x00\x01\xd9\x01x"])
def test_what_is_nested_too_deeply_for_some_pythons_is_garbage_to_all(around: bytes, depth: int) -> None:
    begin = b"\x97" + msgspec.msgpack.encode([1, "eve", 1, None, 1, [["unknown", 1]]])[1:]
    wide = msgspec.msgpack.encode([1.5, -7, "x" * 300, b"y" * 70_000, [[0]] * 300, msgspec.msgpack.Ext(1, b"123")])
    for field, deep in (
        (around * depth + b"\xc0", depth > 200),
        (wide, False),
        (b"\x92" + wide + around * depth, True),
    ):
        found = codec.decode(zlib.crc32(begin + field).to_bytes(4, "little") + begin + field)
        assert isinstance(found, codec.Garbage) is deep
