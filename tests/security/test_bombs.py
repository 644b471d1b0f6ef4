"""Small files that claim to be large, or grow large when they are read: each is refused in one line, unread."""

from __future__ import annotations

import contextlib
import json
import math
import operator
import os
import random
import sqlite3
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import optuna
import pytest
from click.testing import CliRunner
from optuna.distributions import CategoricalDistribution, FloatDistribution

import hopaas_p2p
from hopaas_p2p import Int, spool
from hopaas_p2p.analysis import table
from hopaas_p2p.analysis.facts import params_of
from hopaas_p2p.analysis.importance import importance
from hopaas_p2p.analysis.table import TrialTable
from hopaas_p2p.cli.main import cli as commands
from hopaas_p2p.core import codec, snapshot, validity
from hopaas_p2p.core.attributes import SAMPLER
from hopaas_p2p.core.records import Categorical, Commit, Float, StudyDefine, StudyRegistered, StudySet, TrialCreate
from hopaas_p2p.core.state import COMPLETE, FAIL
from hopaas_p2p.errors import ConfigurationError, InvalidInput
from hopaas_p2p.moving import backup, import_study, sweeps, tables
from hopaas_p2p.moving.files import copy_files, from_directory
from hopaas_p2p.moving.optunas import _bounded, load_optuna
from hopaas_p2p.moving.records import StudyRecords, of_state
from hopaas_p2p.open import open_store
from hopaas_p2p.runtime import settings
from hopaas_p2p.runtime.atomic import read_own
from hopaas_p2p.search.known import KnownTrials
from hopaas_p2p.search.priors import Prior, Taught
from hopaas_p2p.storage import handle
from hopaas_p2p.storage.storage import Storage
from hopaas_p2p.stores.base import Outgoing
from hopaas_p2p.stores.directory.store import DirectoryStore
from tests.security.test_effort import effort
from tests.support.dashboard_studies import Scribe

LAUGHS = "a0: &a0 [1, 1]\n" + "".join(f"a{at}: &a{at} [{', '.join([f'*a{at - 1}'] * 9)}]\n" for at in range(1, 12))
SPARSE = 40 << 30


def sweep(*parameters: str, method: str = "grid") -> str:
    return f"method: {method}\nparameters:\n" + "".join(f"  p{at}: {text}\n" for at, text in enumerate(parameters))


@pytest.mark.parametrize(
    "text",
    [
        LAUGHS,
        "name: s\nspace: &a\n  b: *a\n",
        "a: &a {x: 1}\n" + "".join(f"b{at}: &a\n  <<: [{', '.join(['*a'] * 9)}]\n  x{at}: 1\n" for at in range(12)),
        "x: " + "[" * 5000,
        sweep("{min: 0, max: 1, distribution: q_uniform, q: 5e-324}", method="random"),
        sweep("{min: 0, max: 1, distribution: q_uniform, q: 1e-300}", method="random"),
        sweep("{min: 0, max: " + "9" * 4000 + "}"),
        sweep("{min: 0, max: 9, distribution: q_uniform, q: .inf}", method="random"),
        sweep("{min: 0, max: 9}", method="random") + "early_terminate: {type: hyperband, min_iter: 1e400}",
        sweep("{min: 0, max: 9}", method="random") + f"description: {'1' * 2000}x",
        sweep("{min: 0, max: 9}", method="random") + f"description: 1{':1' * 1000}",
        sweep("{min: 0, max: 9}", method="random") + f"description: !!int '{'1' * 2000}'",
        sweep("{min: 0, max: 9}", method="random") + f"description: 1{':1' * 400}.5",
    ],
    ids=[
        *("laughs", "itself", "merges", "deep", "least q", "tiny q", "digits", "infinite q", "infinite rung"),
        *("nearly a number", "base 60", "a number by its tag", "too large a float"),
    ],
)
def test_a_description_in_yaml_does_not_grow(tmp_path: Path, text: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(InvalidInput) as refused:
        sweeps.read(path)
    assert len(str(refused.value)) < 400
    assert str(refused.value).startswith(str(path))


def test_a_long_description_is_read_in_quotes(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    for text in (f"'{'1' * 5000}'", f"|-\n  {'1' * 5000}"):
        path.write_text(sweep("{min: 0, max: 9}", method="random") + f"description: {text}\n")
        assert sweeps.read(path).user_attrs == {"description": "1" * 5000}


def test_anchors_are_still_read(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("method: random\nparameters:\n  a: &a {min: 0.0, max: 1.0}\n  b: *a\n  c: {<<: *a, max: 2.0}\n")
    assert list(sweeps.read(path).space) == ["a", "b", "c"]


@pytest.mark.parametrize("name", ["s.yaml", "s.spool"])
def test_a_sparse_file_is_not_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with path.open("wb") as file:
        file.truncate(SPARSE)
    reader = {"s.yaml": sweeps.read, "s.spool": spool.exported}[name]
    with pytest.raises(InvalidInput):
        reader(path)


@pytest.mark.parametrize("name", ["s.journal", "s.csv", "s.study", "s.db"])
def test_a_sparse_file_is_not_imported(tmp_path: Path, name: str) -> None:
    storage = hopaas_p2p.open_storage("memory://sparse")
    hopaas_p2p.open_study(storage, "s")
    path = tmp_path / name
    with path.open("wb") as file:
        file.write(b"SQLite format 3\0" if name == "s.db" else b"")
        file.truncate(SPARSE)
    for source in (str(path), f"sqlite:///{path}"):
        with pytest.raises(InvalidInput, match="far larger than its contents"):
            import_study(storage, source, name="s")


@pytest.mark.parametrize(
    "reader", [sweeps.read, spool.exported, backup.read, Prior.from_file], ids=["yaml", "spool", "backup", "prior"]
)
def test_a_pipe_in_the_place_of_a_file_holds_nobody_up(tmp_path: Path, reader: Callable[[Path], object]) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name in ("pipe", "link"):
        with pytest.raises((InvalidInput, OSError), match="regular file"):
            reader(tmp_path / name)


def test_a_sparse_file_of_settings_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with (tmp_path / "hopaas.toml").open("wb") as file:
        file.truncate(SPARSE)
    with pytest.raises(OSError, match="at most 1048576 are allowed"):
        read_own(tmp_path / "hopaas.toml")
    done = CliRunner().invoke(commands, ["config", "show"])
    assert not isinstance(done.exception, MemoryError | OSError)


def test_a_file_of_settings_is_refused_before_it_is_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    parsed: list[str] = []
    monkeypatch.setattr(settings, "_parsed", lambda _path, text: parsed.append(text) or {})
    folder = settings.user_file().parent
    (folder / "joined").mkdir(parents=True, mode=0o700)
    for path in (tmp_path / "hopaas.toml", folder / "config.toml", folder / "joined" / "a.toml"):
        path.write_text(".".join("a" * 9000) + " = 1\n")
        done = CliRunner().invoke(commands, ["config", "show"])
        assert "at most 16384 are allowed" in f"{done.output}{done.exception}"
        with pytest.raises(ConfigurationError, match="at most 16384 are allowed"):
            settings.trust(path)
        path.unlink()
    assert parsed == []


def test_a_sweep_with_many_rungs_is_read(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(
        "method: random\nparameters: {x: {min: 0.0, max: 1.0}}\n"
        "early_terminate: {type: hyperband, max_iter: 27, s: 9000000000000000000, eta: 1000000000000000000}"
    )
    assert sweeps.read(path).search["pruner"]._min_resource == 1


def test_a_csv_whose_rows_are_short_takes_the_room_of_its_cells() -> None:
    columns = 20_000
    names = ",".join(f"params_p{at}" for at in range(columns))
    lines = [f"number,state,value,{names}\n", *["1,COMPLETE,2,3\n"] * columns]
    tracemalloc.start()
    read = tables.load_csv(lines, space={}, name=None)
    assert tracemalloc.get_traced_memory()[1] < 200 << 20
    tracemalloc.stop()
    assert len(read.trials) == columns
    assert read.trials[0].params == {"p0": 3.0}


def test_a_csv_of_choices_looks_each_up_once() -> None:
    lines = ["state,value,params_c\n", *[f"COMPLETE,1,v{at % 10_000}\n" for at in range(50_000)]]
    began = time.process_time()
    assert tables.load_csv(lines, space={}, name=None).trials[49_999].params == {"c": 9_999.0}
    assert time.process_time() - began < 10


_ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT"
_COMPUTED = {
    "rows": "ALTER TABLE trial_intermediate_values RENAME TO t; CREATE VIEW trial_intermediate_values AS "
    f"{_ENDLESS} i trial_intermediate_value_id, 1 trial_id, i step, 0.5 intermediate_value, 'FINITE' "
    "intermediate_value_type FROM n",
    "no end": f"ALTER TABLE version_info RENAME TO t; CREATE VIEW version_info AS {_ENDLESS} t.* FROM t, n WHERE i < 0",
    "column": "ALTER TABLE studies ADD COLUMN x AS (hex(zeroblob(100000000)))",
}


@pytest.mark.parametrize("change", [*_COMPUTED.values(), ""], ids=[*_COMPUTED, "itself"])
def test_a_database_that_computes_what_it_holds_is_refused(tmp_path: Path, change: str) -> None:
    url = f"sqlite:///{tmp_path}/o.db"
    optuna.create_study(storage=url, study_name="s").add_trial(optuna.create_trial(value=1.0))
    with contextlib.closing(sqlite3.connect(tmp_path / "o.db")) as database:
        database.executescript(change)
    if change:
        with pytest.raises(InvalidInput, match="its contents are computed"):
            load_optuna(url, name=None)
    else:
        assert len(load_optuna(url, name=None).trials) == 1


def test_a_database_whose_reading_does_not_end_is_given_up(tmp_path: Path) -> None:
    (tmp_path / "o.db").touch()
    with contextlib.closing(_bounded(str(tmp_path / "o.db"))) as database, pytest.raises(sqlite3.OperationalError):
        database.execute(f"{_ENDLESS} count(*) FROM n")


def test_a_study_has_a_thousand_names_of_parameters(tmp_path: Path) -> None:
    scribe = Scribe(space={})
    said = scribe.say("m", *[trial_with(f"p{at}") for at in range(1002)])
    assert [one.accepted for one in said] == [True] * 1000 + [False] * 2
    assert scribe.say("m", trial_with("p7"))[0].accepted
    assert snapshot.load(snapshot.dump(scribe.state)).dists == scribe.state.dists
    forged = scribe.state
    forged.dists["p1000"] = Float(0.0, 1.0)
    with pytest.raises(snapshot.CorruptSnapshot):
        snapshot.load(snapshot.dump(forged))


def trial_with(name: str) -> TrialCreate:
    return TrialCreate(COMPLETE, params={name: 0.5}, dists={name: Float(0.0, 1.0)}, values=(1.0,))


def test_the_name_that_is_one_too_many_is_refused_at_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validity, "MOST_PARAMETERS", 2)
    monkeypatch.setattr(handle, "MOST_PARAMETERS", 2)
    with contextlib.closing(hopaas_p2p.open_study("memory://names", "s")) as study:
        trial = study.ask()
        for name in "ab":
            trial.suggest_float(name, 0, 1)
        with pytest.raises(InvalidInput, match="at most 2 parameters; 'c' would be one more"):
            trial.suggest_float("c", 0, 1)
        study.tell(trial, 1.0)


@pytest.mark.parametrize("kind", ["user_attrs", "metrics"])
def test_names_that_peers_choose_make_so_many_columns_and_no_more(kind: str) -> None:
    scribe = Scribe(space={})
    for at in range(1000):
        more = {"user": {f"k{at}": str(at)}} if kind == "user_attrs" else {"metrics": {f"k{at}": {0: float(at)}}}
        scribe.say("m", TrialCreate(COMPLETE, values=(1.0,), **more))  # type: ignore[arg-type]
    lines = list(tables.dump_csv(of_state(scribe.state)))
    assert lines[0].count(f"{kind}_") == 256
    assert sum(map(len, lines)) < 500_000
    if kind == "user_attrs":
        read = tables.load_csv(lines, space={}, name=None)
        assert [one.user for one in read.trials.values()] == [{f"k{at}": str(at)} for at in range(1000)]


def test_the_choices_of_a_parameter_are_gone_over_once(tmp_path: Path) -> None:
    choices = Categorical(tuple(f"v{at}" for at in range(4000)))
    scribe = Scribe(space={"c": choices})
    scribe.say("m", *[TrialCreate(COMPLETE, params={"c": float(at)}, values=(1.0,)) for at in range(4000)])
    began = time.process_time()
    assert [params_of(one, scribe.state.dists)["c"] for one in scribe.state.trials] == list(choices.choices)
    assert len(list(tables.dump_csv(of_state(scribe.state)))) == 4001
    assert time.process_time() - began < 3


class Counted(str):
    """Counts how often texts are compared."""

    __slots__ = ()
    compared = 0
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return str.__eq__(self, other)


def test_a_table_of_trials_compares_no_choice_with_all_others() -> None:
    choices = CategoricalDistribution([Counted(f"v{at}") for at in range(2000)])
    Counted.compared = 0
    TrialTable().make_room(1, {"c": choices})
    assert Counted.compared < 4000


def test_importance_is_that_of_the_most_frequent_parameters() -> None:
    scribe = Scribe(space={f"x{at}": Float(0.0, 1.0) for at in range(120)})
    for at in range(40):
        params = {f"x{one}": (at % 7) / 7 for one in range(120) if one < 90 or (at + one) % 2}
        scribe.say("m", TrialCreate(COMPLETE, params=params, values=(float(at % 7),)))
    found = importance(scribe.state, TrialTable.of(scribe.state))
    assert {f"x{one}" for one in range(90)} <= {name for name, _ in found.shares}
    assert len(found.shares) <= 100
    assert "of the 100 most frequent parameters" in found.note


def test_a_new_set_of_parameters_leaves_the_groups_of_all_others_alone() -> None:
    """A study may have a thousand groups, and a worker can write a new pair in 60 bytes."""
    one, known = FloatDistribution(0, 1), KnownTrials(lambda trial: trial.params)
    for at in range(20):
        known._learn({f"a{at}": one, f"b{at}": one})
    before = known.groups
    known._learn({"a3": one, "new": one})
    kept = [at for at, group in enumerate(before) if any(group is other for other in known.groups)]
    assert kept == [at for at in range(20) if at != 3]
    assert [list(group) for group in [*known.groups[3:5], known.groups[-1]]] == [["a3"], ["b3"], ["new"]]


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_a_front_is_what_a_comparison_of_all_with_all_finds(objectives: int) -> None:
    numbers = random.Random(objectives)
    for count in [0, 1, *[numbers.randrange(2, 30) for _ in range(20)]]:
        scribe = Scribe(*["minimize"] * objectives)
        values = [tuple(numbers.choice((0.0, 1.0, 2.0, math.inf)) for _ in range(objectives)) for _ in range(count)]
        scribe.say("m", *[TrialCreate(COMPLETE, values=one) for one in values])
        beaten = {
            at
            for at, one in enumerate(values)
            if any(other != one and all(map(operator.le, other, one)) for other in values)
        }
        assert TrialTable.of(scribe.state).front().tolist() == sorted({*range(count)} - beaten)


def test_a_front_of_all_trials_compares_none_with_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def front(size: int, *more: float) -> TrialTable:
        scribe = Scribe(*["minimize"] * (2 + len(more)))
        scribe.say("m", *[TrialCreate(COMPLETE, values=(float(at), -float(at), *more)) for at in range(size)])
        return TrialTable.of(scribe.state)

    two = front(4000)
    assert effort(lambda: two.front()) < 1.5 * effort(front(2000).front) + 20_000
    assert len(two.front()) == 4000
    monkeypatch.setattr(table, "_MOST_ON_FRONT", 10)
    assert front(40, 0.0).front().tolist() == list(range(10)), "of three objectives, those best in the first"


@pytest.mark.parametrize(
    "choices",
    [
        (1, True, 1.0, "a", 0, False, "a", None, "1"),
        (math.nan, 1, math.nan, True),
        (float("nan"), float("nan"), None, 2.0, 2),
        (1 << 53, float(1 << 53), (1 << 53) + 1),
    ],
)
def test_equal_choices_have_the_place_that_optuna_gives_them(choices: tuple[bool | float | str | None, ...]) -> None:
    distribution = CategoricalDistribution(choices)
    table = TrialTable()
    table.make_room(len(choices), {"c": distribution})
    table.params["c"][:] = range(len(choices))
    assert table.merged("c", slice(None)).tolist() == [distribution.to_internal_repr(one) for one in choices]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_study_of_optuna_has_lists_as_choices() -> None:
    distribution = CategoricalDistribution(([1], [2]))  # type: ignore[arg-type]
    table = TrialTable()
    table.refresh([optuna.create_trial(value=1.0, params={"c": [2]}, distributions={"c": distribution})])
    assert table.params["c"].tolist() == [1.0]


@pytest.mark.parametrize("choices", [tuple(range(10_001)), ("a" * 32_000, "b" * 34_000)], ids=["many", "long"])
def test_a_parameter_has_so_many_choices_and_no_more(tmp_path: Path, choices: tuple[int | str, ...]) -> None:
    scribe = Scribe(space={})
    for some, accepted in ((choices, False), (choices[: len(choices) - 1], True)):
        record = TrialCreate(FAIL, params={"c": 0.0}, dists={"c": Categorical(some)})
        assert scribe.say("m", record)[0].accepted is accepted
    with contextlib.closing(hopaas_p2p.open_study("memory://choices", "s")) as study:
        with pytest.raises(InvalidInput, match="too many for a parameter: at most 10,000 with 65,536"):
            study.ask().suggest_categorical("c", choices)
        with pytest.raises(InvalidInput, match="too many for a parameter: at most 10,000 with 65,536"):
            study.set_space({"c": Categorical(choices)})
    rows = ["state,value,params_c\n", *[f"COMPLETE,1,{'v' * (len(choices) > 2)}{one}\n" for one in choices]]
    with pytest.raises(InvalidInput, match="too many for a parameter: at most 10,000 with 65,536"):
        tables.load_csv(rows, space={}, name=None)


def test_a_parameter_with_thousands_of_choices_has_no_importance(monkeypatch: pytest.MonkeyPatch) -> None:
    scribe, seen = Scribe(space={"x": Float(0.0, 1.0)}), list[set[str]]()
    dists = {name: Categorical(tuple(range(count))) for name, count in (("few", 256), ("many", 257))}
    for at in range(20):
        params = {"x": at / 20, "few": float(at), "many": float(at)}
        scribe.say("m", TrialCreate(COMPLETE, params=params, dists=dists, values=(float(at),)))

    def evaluate(_self: object, study: optuna.Study) -> dict[str, float]:
        seen.extend(set(trial.params) for trial in study.get_trials())
        return {"x": 1.0}

    monkeypatch.setattr(optuna.importance.PedAnovaImportanceEvaluator, "evaluate", evaluate)
    assert importance(scribe.state, TrialTable.of(scribe.state)).shares == (("x", 1.0),)
    assert seen == [{"x", "few"}] * 20


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("hopaas:exporter:x", '{"peer":null,"pad":"%s"}'),
        ("hopaas:copies", "0%s"),
        ("hopaas:resumed", "0%s"),
        ("constraints", "[0%s]"),
        ("constraints:c", "0%s"),
    ],
)
def test_an_attribute_that_later_records_are_compared_with_is_short(key: str, text: str) -> None:
    scribe = Scribe()
    most = 32_768 if key.startswith("constraints") else 4096
    for over in (0, 1):
        said = {key: text % (" " * (most + over - len(text) + 2))}
        assert len(said[key]) == most + over
        for record in (StudySet(system=said), TrialCreate(FAIL, system=said)):
            assert scribe.say("m", record)[0].accepted is (over == 0)


def test_how_deep_a_text_is_takes_no_more_room_than_the_text() -> None:
    begin = '["' + r"\"[\\" * 50 + '",' + "[]," * 64
    long = 300_000
    texts = ['"' + "x" * long + '"]', '"' + "\\n" * (long // 2) + '"]', "[]," * (long // 3) + "0]", '"",' * (long // 3)]
    tracemalloc.start()
    assert all(validity.possible_attributes({"a": begin + text}) for text in texts)
    assert tracemalloc.get_traced_memory()[1] < 4 * long
    tracemalloc.stop()
    assert not validity.possible_attributes({"a": begin + "[" * 64})


def test_the_ids_of_a_studys_files_are_gone_over_once(tmp_path: Path) -> None:
    ids = [f"{'0' * 32}-{at:032x}" for at in range(60_000)]
    named = {f"artifacts:{one}": json.dumps(json.dumps({"artifact_id": one})) for one in ids}
    source = StudyRecords(StudyDefine("s", ("minimize",)), {}, StudySet(system=named))
    (tmp_path / "files").mkdir()
    began = time.process_time()
    with contextlib.closing(open_store("memory://ids")) as store:
        copied, _, _ = copy_files(source, from_directory(tmp_path / "files"), store.artifacts(), "1" * 32)
    assert f"artifacts:{'1' * 32}-{'0' * 32}" in copied.settings.system
    assert time.process_time() - began < 4


def test_a_nested_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("[" * 100_000)
    with pytest.raises(InvalidInput):
        sweeps.read(tmp_path / "s.yaml")
    with pytest.raises(InvalidInput):
        tables.load_csv(["state,value\n", f"COMPLETE,{'1' * 200_000}\n"], space={}, name=None)


def test_a_spool_that_claims_more_than_it_holds_is_given_up_at_its_first_frame(tmp_path: Path) -> None:
    whole = spool.Spooled("/s", "u", "s", [], 0, "unsent", [(0, None)], [codec.encode(Commit("w", 1, "w", 0, ()))])
    path = tmp_path / "a.commits"
    path.write_bytes(b"".join([spool._MAGIC, *spool._frames(whole)]))
    assert spool.read(path) == whole
    assert spool.exported(path) == [whole]
    lying = msgspec.msgpack.encode(msgspec.structs.replace(whole, payloads=[], places=[(0, None)] * 1000))
    for claim in ((0xFFFFFFFF).to_bytes(4, "big"), (codec.MAX_BYTES).to_bytes(4, "big"), bytes(4)):
        path.write_bytes(spool._MAGIC + len(lying).to_bytes(4, "big") + lying + claim)
        with path.open("r+b") as file:
            file.truncate(900 << 20)
        assert spool.read(path) is None
        with pytest.raises(InvalidInput):
            spool.exported(path)
    many = msgspec.msgpack.encode(msgspec.structs.replace(whole, payloads=[], places=[(0, None)] * 5_000_000))
    path.write_bytes(spool._MAGIC + len(many).to_bytes(4, "big") + many)
    tracemalloc.start()
    with pytest.raises(InvalidInput):
        spool.exported(path)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def _backup(tmp_path: Path, *records: object) -> Path:
    scribe = Scribe()
    scribe.say("a", *records)
    scribe.trial("a", 1.0, lr=0.01)
    scribe.put_into(str(tmp_path / "store"))
    with contextlib.closing(DirectoryStore(tmp_path / "store")) as store:
        backup.back_up(store, tmp_path / "whole.backup")
    return tmp_path / "whole.backup"


def _rewritten(path: Path, manifest: bytes, more: dict[str, bytes]) -> Path:
    """The backup with this manifest, and with members more."""
    forged = path.with_name("forged.backup")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(forged, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            new.writestr(info, manifest if info.filename == backup._MANIFEST else old.read(info))
        for name, data in more.items():
            new.writestr(name, data)
        new.comment = backup._COMMENT
    return forged


def test_a_pipe_that_takes_the_place_of_a_backup_that_was_looked_at_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, look = _backup(tmp_path), backup.open_regular

    def replaced(given: Path, *, named: bool) -> int:
        descriptor = look(given, named=named)
        path.unlink()
        os.mkfifo(path)
        return descriptor

    monkeypatch.setattr(backup, "open_regular", replaced)
    with contextlib.closing(backup.read(path)) as opened:
        assert len(opened.manifest.studies) == 1


@pytest.mark.parametrize("change", [lambda data: data[:40], lambda data: bytes(len(data)), lambda _: b""])
def test_a_backup_that_changes_after_it_was_checked_is_refused(
    tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    path = _backup(tmp_path, StudySet(user={"more than a buffer": f'"{random.Random(1).randbytes(50_000).hex()}"'}))
    with contextlib.closing(backup.read(path)) as opened:
        path.write_bytes(change(path.read_bytes()))
        with pytest.raises(InvalidInput, match="this backup is damaged"):
            opened.records(opened.manifest.studies[0])


def test_a_backups_manifest_claims_what_is_there(tmp_path: Path) -> None:
    path = _backup(tmp_path)
    with zipfile.ZipFile(path) as archive:
        said = json.loads(archive.read(backup._MANIFEST))
    backup.read(_rewritten(path, json.dumps(said).encode(), {})).close()
    (study,) = said["studies"]
    zeros = bytes(100 << 20)
    forgeries: list[tuple[dict[str, object], dict[str, bytes]]] = [
        ({"studies": [study] * 1000}, {}),
        ({"studies": [{**study, "uuid": "other"}]}, {}),
        ({"studies": [{**study, "uuid": "../other"}]}, {}),
        ({"studies": [{**study, "base": 5}]}, {}),
        ({"files": 1 << 40}, {}),
        ({}, {"base/x": zeros}),
        ({}, {"study/x": zeros}),
        ({"files": 1}, {"files/x": zeros}),
    ]
    for changed, more in forgeries:
        with pytest.raises(InvalidInput):
            backup.read(_rewritten(path, json.dumps({**said, **changed}).encode(), more))
    with pytest.raises(InvalidInput):
        backup.read(_rewritten(path, json.dumps(said).encode() + b" " * (100 << 20), {}))


def test_a_study_that_packs_to_a_thousandth_is_backed_up(tmp_path: Path) -> None:
    with contextlib.closing(hopaas_p2p.open_study(tmp_path, "study", create=True)) as study:
        for _ in range(24):
            study.set_user_attr("text", "a" * 1_000_000)
    with contextlib.closing(DirectoryStore(tmp_path)) as store:
        backup.back_up(store, tmp_path / "file")
    backup.read(tmp_path / "file").close()


def test_parts_of_a_backup_do_not_overlap(tmp_path: Path) -> None:
    path = _backup(tmp_path)
    with zipfile.ZipFile(path, "a") as archive:
        first = archive.infolist()[1]
        for at in range(100):
            twin = zipfile.ZipInfo.__new__(zipfile.ZipInfo)
            for slot in zipfile.ZipInfo.__slots__:
                if hasattr(first, slot):
                    setattr(twin, slot, getattr(first, slot))
            twin.filename = f"study/{at}"
            archive.filelist.append(twin)
        archive._didModify = True  # type: ignore[attr-defined]
    with pytest.raises(InvalidInput):
        backup.read(path)


def test_a_sampler_that_lists_all_values_is_not_used_for_a_billion(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scribe = Scribe(space={"n": Int(0, 10**9)})
    method = {"class": "optuna.samplers.BruteForceSampler", "arguments": {}}
    scribe.say("m", StudySet(system={SAMPLER: json.dumps(method)}))
    scribe.put_into(str(tmp_path))
    with contextlib.closing(hopaas_p2p.open_study(tmp_path, "study")) as study:
        assert not isinstance(study.sampler, optuna.samplers.BruteForceSampler)
        study.tell(study.ask(), 1.0)
    assert "too many values" in caplog.text


def test_a_list_of_ten_thousand_studies_opens_a_hundred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Scribe(name="old").put_into(str(tmp_path), uuid="0123456789abcdef")
    store = DirectoryStore(tmp_path)
    many = tuple(StudyRegistered(f"{at:032x}", f"s{at}") for at in range(10_000))
    store.catalog().exchange(Outgoing("mallory:1", codec.encode(Commit("mallory", 1, "mallory", 0, many))), 1)
    store.close()
    opened: list[int] = []
    read = Storage.state
    monkeypatch.setattr(Storage, "state", lambda self, study: (opened.append(study), read(self, study))[1])

    def listed(*words: str) -> list[str]:
        opened.clear()
        done = CliRunner().invoke(commands, ["study", "list", *words, "--store", str(tmp_path), "--json"])
        assert done.exit_code == 0, done.output
        return [one["name"] for one in json.loads(done.stdout)]

    assert listed() == []  # nobody has defined the newest
    assert len(opened) == 100
    assert len(listed("--names")) == 10_001
    assert opened == []
    assert listed("o*") == ["old"]
    assert len(set(opened)) == 1


def test_choices_that_no_prior_has_take_no_room_where_priors_are_judged() -> None:
    """Without a search space, any worker adds parameters, each with ten thousand choices for a few kilobytes."""
    prior = Prior("earlier", {"x": Float(0, 1)}, {"x": [0.1, 0.2, 0.3]}, [-1.0, 0.0, 1.0], [1.0], 0.01)
    known = {"x": FloatDistribution(0, 1)}
    many = known | {f"p{place}": CategoricalDistribution(tuple(range(10_000))) for place in range(10)}
    tracemalloc.start()
    taught = Taught(many, [prior])
    anywhere = taught.cube.points(taught.cube.anywhere(np.random.RandomState(1), 100))
    told = taught.means(anywhere)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10_000_000
    assert np.allclose(told, Taught(known, [prior]).means(anywhere[:, :1]), atol=1e-4)
