"""Small files that claim to be large, or grow large when they are read: each is refused in one line, unread."""

from __future__ import annotations

import contextlib
import hashlib
import json
import zipfile
from pathlib import Path

import msgspec
import optuna
import pytest
from click.testing import CliRunner

import hopaas_p2p
from hopaas_p2p import Int, spool
from hopaas_p2p.cli.main import cli as commands
from hopaas_p2p.core import codec
from hopaas_p2p.core.attributes import SAMPLER
from hopaas_p2p.core.records import Commit, StudyOpen, StudySet
from hopaas_p2p.errors import InvalidInput
from hopaas_p2p.moving import backup, from_yaml, tables
from hopaas_p2p.storage.storage import Storage
from hopaas_p2p.stores.base import Outgoing
from hopaas_p2p.stores.directory.store import DirectoryStore
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
        sweep("{min: 0, max: 1000000000}"),
        sweep("{min: 0, max: 1, distribution: q_uniform, q: 1e-9}"),
        sweep("{min: 0, max: 1, distribution: q_uniform, q: 5e-324}", method="random"),
        sweep("{min: 0, max: 1, distribution: q_uniform, q: 1e-300}", method="random"),
        sweep("{min: 0, max: " + "9" * 4000 + "}"),
        sweep(*["{min: 0, max: 4000000000000000000}"] * 1000),
        sweep(*["{values: [1, 2, 3, 4, 5, 6, 7, 8, 9]}"] * 50),
    ],
    ids=["laughs", "itself", "merges", "deep", "integers", "q", "least q", "tiny q", "digits", "ranges", "values"],
)
def test_a_description_in_yaml_does_not_grow(tmp_path: Path, text: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(InvalidInput) as refused:
        from_yaml.read(path)
    assert len(str(refused.value)) < 400
    assert str(refused.value).startswith(str(path))


def test_anchors_are_still_read(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("method: random\nparameters:\n  a: &a {min: 0.0, max: 1.0}\n  b: *a\n  c: {<<: *a, max: 2.0}\n")
    assert list(from_yaml.read(path).space) == ["a", "b", "c"]


@pytest.mark.parametrize("name", ["s.yaml", "s.spool"])
def test_a_sparse_file_is_not_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with path.open("wb") as file:
        file.truncate(SPARSE)
    reader = {"s.yaml": from_yaml.read, "s.spool": spool.exported}[name]
    with pytest.raises(InvalidInput):
        reader(path)


def test_a_nested_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("[" * 100_000)
    with pytest.raises(InvalidInput):
        from_yaml.read(tmp_path / "s.yaml")
    with pytest.raises(InvalidInput):
        tables.load_csv(["state,value\n", f"COMPLETE,{'1' * 200_000}\n"], space={}, name=None)


def test_a_spool_that_claims_more_than_it_holds_is_given_up_at_its_first_frame(tmp_path: Path) -> None:
    whole = spool.Spooled(1, "/s", "u", "s", [], 0, "unsent", [(0, None)], [codec.encode(Commit("w", 1, "w", 0, ()))])
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


def _backup(tmp_path: Path) -> Path:
    scribe = Scribe()
    scribe.trial("a", 1.0, lr=0.01)
    scribe.put_into(str(tmp_path / "store"))
    with contextlib.closing(DirectoryStore(tmp_path / "store")) as store:
        backup.back_up(store, tmp_path / "whole.backup")
    return tmp_path / "whole.backup"


def _rewritten(path: Path, manifest: bytes, more: dict[str, bytes]) -> Path:
    """The backup with this manifest, whose sum is right, and with members more."""
    forged = path.with_name("forged.backup")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(forged, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            new.writestr(info, manifest if info.filename == backup._MANIFEST else old.read(info))
        for name, data in more.items():
            new.writestr(name, data)
        new.comment = backup._COMMENT + hashlib.sha256(manifest).hexdigest().encode()
    return forged


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
        ({"sums": {**said["sums"], "base/x": hashlib.sha256(zeros).hexdigest()}}, {"base/x": zeros}),
        ({"sums": {**said["sums"], "nowhere": "0"}}, {}),
    ]
    for changed, more in forgeries:
        with pytest.raises(InvalidInput):
            backup.read(_rewritten(path, json.dumps({**said, **changed}).encode(), more))
    with pytest.raises(InvalidInput):
        backup.read(_rewritten(path, json.dumps(said).encode() + b" " * (100 << 20), {}))


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
        assert not isinstance(study.optuna.sampler, optuna.samplers.BruteForceSampler)
        study.tell(study.ask(), 1.0)
    assert "too many values" in caplog.text


def test_a_list_of_ten_thousand_studies_opens_a_hundred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Scribe(name="old").put_into(str(tmp_path), uuid="0123456789abcdef")
    store = DirectoryStore(tmp_path)
    many = tuple(StudyOpen(f"{at:032x}", f"s{at}") for at in range(10_000))
    store.catalog().exchange(Outgoing("mallory:1", codec.encode(Commit("mallory", 1, "mallory", 0, many))), 1)
    store.close()
    opened: list[int] = []
    read = Storage._read
    monkeypatch.setattr(Storage, "_read", lambda self, study: (opened.append(study), read(self, study))[1])

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
