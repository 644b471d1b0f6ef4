"""Every field of every record with every odd value that the wire carries, and then every reader.

The fields are found in the records, so a new one is tried as soon as it is there; so are the attributes that some
program reads by name.
"""

from __future__ import annotations

import contextlib
import copy
import math
import re
import secrets
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import optuna
import pytest

pytest.importorskip("streamlit")  # which brings pandas along
import pandas

from hopaas_p2p import open_storage, open_study
from hopaas_p2p.core import codec, records
from hopaas_p2p.core.records import (
    Budget,
    Categorical,
    Checkpoint,
    Float,
    Int,
    Policy,
    Price,
    StudyControl,
    StudyDefine,
    StudySet,
    TrialCreate,
    TrialState,
    Until,
    Used,
)
from hopaas_p2p.core.validity import READ, possible_system
from hopaas_p2p.errors import InvalidInput
from hopaas_p2p.moving import copy_study, optunas, tables
from hopaas_p2p.moving.records import of_state
from tests.security.test_content import GOOD, SPACE, Scribe, healthy, read_everything, said, use

pytestmark = [
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
    pytest.mark.filterwarnings("ignore:Fixed parameter"),
    pytest.mark.filterwarnings("ignore:Clip non-finite values"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # of numpy, in Optuna's samplers
    pytest.mark.filterwarnings("ignore:Series.values returning an ndarray"),  # pyarrow asks pandas for it
]

NUMBERS: Final = (math.nan, math.inf, -math.inf, 1e308, -1e308, 5e-324, 0.0, 0.5, 16.0)
WHOLE: Final = (-(1 << 63), (1 << 63) - 1, (1 << 64) - 1, -(1 << 53), (1 << 53) - 1, 1 << 31, -1, 0, 1, 8)
WORDS: Final = ("", "x", "\0", "\r\n", "\x1b[2J\u202e", "=1+1", "<b>", "x" * 513, "paused", "running", "ann")
TEXTS: Final = (
    *("null", "true", "7", "-1", "1e400", "-1e400", "NaN", "1e308", str(1 << 70), str((1 << 63) - 1), "9" * 5000),
    *('"x"', '""', '"\\u0000"', '"\\ud800"', '"\\\\ud800"', '["\\ud800"]', '{"\\udfff":1}', "", "{", "nonsense"),
    *("[]", "[1]", "[null]", "[1e400]", '["a"]', '["a","b"]', "[[1]]", "[-1]", "{}", '{"a":1e400}', '{"a":{"b":"c"}}'),
    *('{"owner":[]}', '{"owner":"x","history":[["y",1,null,5,"z"]]}', '{"history":[1]}', '{"copied_from":["u",0]}'),
    *('{"epoch":1e400}', '{"of":0,"seed":1}', '{"of":99999999,"seed":0}', '{"generation":1,"parents":[0]}'),
    *('{"class":"x","arguments":{}}', '{"lr":["f",0,1]}', '{"lr":["i",0,1]}', '{"sender":7}', '"allow"', "3"),
)
DISTRIBUTIONS: Final = (
    *(Float(0, 1), Float(0, 1, step=0.1), Float(1e-5, 1e-1, log=True), Float(0, math.inf), Float(math.nan, 1)),
    *(Float(0, 1, step=1e-300), Float(-1e308, 1e308), Float(1, 0), Int(0, (1 << 63) - 1), Int(0, (1 << 64) - 1)),
    *(Int(1, 5, log=True), Int(0, 5, step=0), Categorical(()), Categorical((True, 1, 1.0, "1", None, math.nan))),
    *(Categorical(((1 << 64) - 1,)), Categorical(("adam", "sgd", "lion")), Categorical(("\0", "\r", "x" * 60_000))),
)
ODD: Final = [
    *(None, True, *NUMBERS, *WHOLE, *WORDS, *TrialState, (), *[(one,) for one in (*NUMBERS, *WHOLE)], (0.5, 0.5)),
    *({}, *[{name: number} for name in ("lr", "opt") for number in NUMBERS]),
    *[GOOD | {"new": number} for number in NUMBERS],
    *[{name: one} for name in ("lr", "new") for one in DISTRIBUTIONS],
    *({"\0": Float(0, 1)}, {"x" * 513: Float(0, 1)}),
    *[{step: number} for step, number in zip(WHOLE, NUMBERS, strict=False)],
    *[{word: {step: math.nan, 0: 1.0}} for word, step in zip(WORDS, WHOLE, strict=False)],
    *[{word: word} for word in WORDS],
    *[{about: word} for about in ("site", "gpus", "pid", "ttl") for word in ("", "1e400", "nan", "-1", "\x1b[2J")],
    *[Used(one, other) for one in WHOLE for other in (None, *WHOLE)],
    *[Checkpoint(step, word, size, word) for step, word, size in zip(WHOLE, WORDS, WHOLE[::-1], strict=False)],
    *[Budget(epochs=one, gpu_hours=number) for one in WHOLE for number in NUMBERS],
    *[Budget(prices={word: Price(number, 0, number)}) for word in WORDS for number in NUMBERS],
    *[Budget(until=Until(number, date, None, number)) for number in NUMBERS for date in (None, *WHOLE, *WORDS)],
    *[Policy(ttl=number) for number in NUMBERS],
]
BASES: Final = {
    TrialCreate: TrialCreate(TrialState.COMPLETE, params=GOOD, values=(0.5,)),
    records.TrialSet: records.TrialSet(8, 1),
    records.TrialFinish: records.TrialFinish(8, 1, TrialState.COMPLETE, (0.5,)),
    records.TrialTakeOver: records.TrialTakeOver(8, 1, TrialState.COMPLETE, (0.5,)),
    records.TrialCheckpoint: records.TrialCheckpoint(8, 1, Checkpoint(1, "key", 1, "sum")),
    records.PeerJoin: records.PeerJoin({}),
    StudyDefine: StudyDefine("again", ("minimize",)),
}
KINDS: Final = typing.get_args(records.StudyRecord)


def of_kind(kind: type) -> Any:
    """A record of this kind that is good, about the trial that runs."""
    return BASES.get(kind) or kind(
        *[8, 1][: len([name for name in kind.__struct_fields__ if name in ("number", "epoch")])]
    )


def variants(kind: type) -> Iterator[Any]:
    """Records of this kind with an odd value in one field."""
    for field in kind.__struct_fields__:  # type: ignore[attr-defined]
        for odd in ODD:
            if field == "dists" and isinstance(odd, dict):  # of a parameter that the trial has
                yield msgspec.structs.replace(of_kind(kind), dists=odd, params=dict.fromkeys(odd, 1.0))
            else:
                yield msgspec.structs.replace(of_kind(kind), **{field: odd})


def carried(record: Any) -> bool:
    """Whether the wire carries it."""
    with contextlib.suppress(InvalidInput, TypeError):
        arrived = codec.decode(codec.encode(records.Commit("mallory", 1, "mallory", 0, (record,))))
        return isinstance(arrived, records.Commit) and not isinstance(arrived.records[0], records.Opaque)
    return False


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database of Optuna's."""
    url = f"sqlite:///{tmp_path_factory.mktemp('optuna')}/optuna.db"
    optuna.storages.RDBStorage(url).engine.dispose()
    return url


def read(scribe: Scribe, database: str, folder: Path) -> None:
    """Every reader, each import of what was exported, and Optuna's own functions."""
    state, name = scribe.state, secrets.token_hex(8)
    read_everything(state)
    whole = of_state(state)
    whole = whole._replace(define=msgspec.structs.replace(whole.define, name=name))
    optunas.dump_optuna(whole, database)
    again = optunas.load_optuna(database, name=name)
    assert len(again.trials) == len(state.trials)
    tables.load_csv("".join(tables.dump_csv(again)).splitlines(), space=whole.define.space, name="s")
    tables.dump_parquet(whole, folder / "study.parquet")
    assert len(pandas.read_parquet(folder / "study.parquet")) == len(state.trials)
    there = optuna.load_study(study_name=name, storage=database)
    assert len(there.trials_dataframe()) == len(state.trials)

    storage, other = (open_storage(f"memory://{secrets.token_hex(8)}") for _ in range(2))
    storage.define_study(StudyDefine("study", ("minimize",), space=SPACE))
    log = storage.handle(0).log
    for commit in scribe.commits[1:]:
        storage.peer.commit(log, *commit.records, owner=commit.owner)
    storage.peer.commit(log, StudyControl("running", -1))
    use(storage, ("TPE",))
    ours = open_study(storage, "study")
    copy_study(ours, other)
    optuna.copy_study(from_study_name="study", from_storage=storage, to_storage=optuna.storages.InMemoryStorage())
    assert len(copy.deepcopy(ours.trials)) == len(ours.trials_dataframe())
    ours.best_trial, ours.best_params  # noqa: B018
    storage.close()
    other.close()


@pytest.mark.parametrize("kind", KINDS)
def test_no_value_of_any_field_stops_a_reader(kind: type, database: str, tmp_path: Path) -> None:
    scribe = healthy()
    tried = [record for record in variants(kind) if carried(record)]
    assert len(tried) >= len(kind.__struct_fields__)  # type: ignore[attr-defined]
    for record in tried:
        if not scribe.state.running:
            said(scribe, TrialCreate(params=GOOD))
        running = next(iter(scribe.state.running))
        said(scribe, msgspec.structs.replace(record, number=running) if getattr(record, "number", 0) == 8 else record)
    read(scribe, database, tmp_path)


@pytest.mark.parametrize("texts", [TEXTS[at::8] for at in range(8)])
def test_no_text_of_any_attribute_that_is_read_by_name_stops_a_reader(
    texts: tuple[str, ...], database: str, tmp_path: Path
) -> None:
    scribe = healthy()
    like = ("completed_rung_0", "constraints:c", "x:generation", "x:parent:1", "hopaas:artifact:01234567")
    keys = (*READ, *like, "hopaas:exporter:1", "hopaas:tags", "artifacts:01234567", "dashboard:note_str:0", "x")
    for text in texts:
        system = {key: text for key in keys if said(healthy(), StudySet(system={key: text}))}
        user = {key: text for key in keys if said(healthy(), StudySet(user={key: text}))}
        said(scribe, TrialCreate(TrialState.COMPLETE, params=GOOD, values=(0.5,), system=system, user=user))
        said(scribe, TrialCreate(TrialState.WAITING, system=system, user=user))
        said(scribe, StudySet(user, system))
    read(scribe, database, tmp_path)


def test_every_attribute_of_ours_is_in_the_table_of_those_that_are_read() -> None:
    free = {"hopaas:tags", "hopaas:tag:", "hopaas:pruned"}  # read with a look at each part, or by nobody
    root = Path(__file__).parents[2]
    found = {
        key
        for folder in ("hopaas_p2p", "dashboard_app")
        for file in root.joinpath(folder).rglob("*.py")
        for key in re.findall(r"\"(hopaas:[a-z_]+:?)\"", file.read_text())
    }
    assert len(found) > 20
    for key in found - free:
        judged = key in READ or not possible_system({f"{key}x": "7"})
        assert judged, f"{key} is read without a rule in core.validity.READ"
