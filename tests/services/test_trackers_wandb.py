"""Studies in Weights & Biases: real runs of its offline mode, read back from its own files."""

from __future__ import annotations

import contextlib
import json
import struct
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hopaas_p2p
from hopaas_p2p.errors import ConfigurationError
from hopaas_p2p.runtime.atomic import replace_atomically
from hopaas_p2p.runtime.credentials import has_netrc_login
from hopaas_p2p.study import Study
from hopaas_p2p.trackers import Export, TrackerUnreachable, WandB, export_to
from hopaas_p2p.trackers import wandb as wandb_tracker
from tests.support.mlflow_fixtures import needed, three_trials
from tests.support.processes import campaign, cli, environment, until

needed("wandb")


@pytest.fixture
def study(tmp_path: Path) -> Iterator[Study]:
    """One COMPLETE trial with a file, one PRUNED, one failed."""
    one = three_trials(tmp_path)
    yield one
    one.close()


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WandB:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    return WandB("tuning")


def records(path: Path) -> Iterator[Any]:
    """What W&B wrote: protocol buffers in the log format of LevelDB."""
    from wandb.proto import wandb_internal_pb2

    data, at, parts = path.read_bytes(), 7, b""
    while at < len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        if len(data) < at + 7:
            return
        _, length, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield wandb_internal_pb2.Record.FromString(parts)
            parts = b""


class Run:
    """A run as its files have it."""

    def __init__(self, parts: list[Path]) -> None:
        self.config: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.exits: list[int] = []
        self.artifacts: list[str] = []
        for part in parts:
            for record in records(next(part.glob("*.wandb"))):
                self._take(record)

    def _take(self, record: Any) -> None:
        kind = record.WhichOneof("record_type")
        if kind == "run":
            self.run = record.run
            self._configure(record.run.config.update)
        elif kind == "config":
            self._configure(record.config.update)
        elif kind == "history":
            items = {"/".join(one.nested_key) or one.key: json.loads(one.value_json) for one in record.history.item}
            self.history.append({name: value for name, value in items.items() if name != "_runtime"})
        elif kind == "summary":
            for one in record.summary.update:
                self.summary["/".join(one.nested_key) or one.key] = json.loads(one.value_json)
        elif kind == "exit":
            self.exits.append(record.exit.exit_code)
        elif kind == "request" and record.request.HasField("log_artifact"):
            self.artifacts.append(record.request.log_artifact.artifact.name)
        elif kind == "artifact":
            self.artifacts.append(record.artifact.name)

    def _configure(self, update: Any) -> None:
        for one in update:
            self.config["/".join(one.nested_key) or one.key] = json.loads(one.value_json)

    def steps(self, name: str) -> list[tuple[int, float]]:
        return [(row["_step"], row[name]) for row in self.history if name in row]


def ended(part: Path) -> bool:
    """Whether all of it is on disk: W&B's service writes on for a moment after `finish`."""
    return any(one.WhichOneof("record_type") == "exit" for file in part.glob("*.wandb") for one in records(file))


def runs(tmp_path: Path) -> dict[str, Run]:
    """Every run that was written there, by the last part of its id."""
    parts: dict[str, list[Path]] = {}
    for path in sorted((tmp_path / "wandb").glob("offline-run-*")):
        until(lambda path=path: ended(path), 60, what=str(path))
        parts.setdefault(path.name.rpartition("-")[2], []).append(path)
    return {key: Run(several) for key, several in parts.items()}


def test_a_study_becomes_a_group_of_runs(study: Study, offline: WandB, tmp_path: Path) -> None:
    sent = export_to(study, offline)

    found = runs(tmp_path)
    assert (sent, sorted(found)) == (3, ["0", "1", "2", "study"])
    assert {one.run.run_group for one in found.values()} == {"s"}
    assert {one.run.project for one in found.values()} == {"tuning"}
    assert [found[key].run.job_type for key in ("2", "study")] == ["trial", "study"]
    complete = found["2"]
    frozen = study.trials[2]
    assert {name: complete.config[name] for name in frozen.params} == frozen.params
    assert complete.steps("report") == [(1, 0.5), (2, 1.0), (3, 1.5)]
    assert (complete.summary["value"], complete.summary["state"]) == (0.75, "COMPLETE")
    provenance = study.provenance(2)
    assert complete.config["hopaas"]["node"] == provenance["host"]
    assert complete.config["hopaas"]["command"].startswith("hopaas-p2p trial show 2 --study s")
    assert f"site:{provenance['site']}" in complete.run.tags
    assert len(complete.artifacts) == 1
    assert [found[key].summary["state"] for key in "01"] == ["FAIL", "PRUNED"]
    assert [found[key].exits for key in ("0", "1", "2", "study")] == [[1], [0], [0], [0]]
    assert found["study"].steps("best_value") == [(2, 0.75)]
    assert found["study"].summary["trials_complete"] == 1


def test_a_second_export_writes_nothing(study: Study, offline: WandB, tmp_path: Path) -> None:
    study.set_budget(9)
    study.enqueue_trial({})  # a trial has no run before it starts
    assert export_to(study, offline) == 3
    before = sorted(path.name for path in (tmp_path / "wandb").iterdir())

    sent = export_to(study, WandB("tuning"))

    assert sent == 0
    assert sorted(path.name for path in (tmp_path / "wandb").iterdir()) == before


def test_runs_of_another_project_in_the_same_directory_are_named(study: Study, offline: WandB, tmp_path: Path) -> None:
    export_to(study, offline)
    with pytest.raises(ConfigurationError, match=r"already exported, to the project tuning\. .* WANDB_DIR"):
        export_to(study, WandB("another"))
    assert export_to(study, WandB("tuning")) == 0


def test_a_running_trial_is_written_as_it_goes_whoever_exports(offline: WandB, tmp_path: Path) -> None:
    study = campaign(tmp_path)
    trial = study.ask()
    trial.report(1.0, 1)
    study.storage.flush()
    export_to(study, offline)
    trial.report(2.0, 2)
    study.storage.flush()
    staying = Export(study, WandB("tuning"))
    staying.sync()
    trial.report(3.0, 3)
    study.tell(trial, 0.5)
    staying.sync()
    staying.tracker.close()

    run = runs(tmp_path)["0"]

    assert run.steps("report") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert run.summary["value"] == 0.5
    study.close()


def test_metrics_stand_beside_the_reports(offline: WandB, tmp_path: Path) -> None:
    study = campaign(tmp_path)
    trial = study.ask()
    trial.report(1.0, 1)
    trial.log(1, auc=0.5, value=7.0)
    study.storage.flush()
    export_to(study, offline)
    trial.log(2, auc=0.6)
    study.tell(trial, 0.5)
    export_to(study, WandB("tuning"))

    run = runs(tmp_path)["0"]

    assert run.steps("report") == [(1, 1.0)]
    assert run.steps("auc") == [(1, 0.5), (2, 0.6)]
    assert run.steps("metric.value") == [(1, 7.0)]
    assert run.summary["value"] == 0.5
    study.close()


@pytest.mark.parametrize("place", range(4))
def test_an_export_that_ends_before_its_ledger_is_written_leaves_no_duplicate(
    study: Study, offline: WandB, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    writes: list[int] = []

    def replace(path: Path) -> contextlib.AbstractContextManager[Path]:
        writes.append(1)
        if len(writes) == place + 1:
            raise OSError(28, "No space left on device")
        return replace_atomically(path)

    monkeypatch.setattr(wandb_tracker, "replace_atomically", replace)
    with pytest.raises(TrackerUnreachable, match="No space left"):
        export_to(study, offline)

    export_to(study, WandB("tuning"))

    found = runs(tmp_path)
    assert [found[key].steps("report") for key in "012"] == [[(1, 0.5), (2, 1.0), (3, 1.5)]] * 3
    assert found["study"].steps("best_value") == [(2, 0.75)]


def test_a_lost_ledger_is_made_anew_from_the_server(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is a stand-in: it says what W&B's API says of runs."""
    import wandb

    from hopaas_p2p.trackers.view import look

    *trials, own = look(study)
    marks = {trial.number: trial.mark for trial in trials}
    there = [
        types.SimpleNamespace(id=f"{own.tags['study']}-{number}", summary={"hopaas_mark": mark, "_step": 3})
        for number, mark in marks.items()
    ]
    there.append(types.SimpleNamespace(id="of-somebody-else", summary={}))
    strange = {"x": {}, "-1": {}, "7": {"hopaas_mark": 5, "_step": "late"}}  # another user of the project made them
    there += [types.SimpleNamespace(id=f"{own.tags['study']}-{key}", summary=one) for key, one in strange.items()]
    asked: list[Any] = []

    def api() -> Any:
        return types.SimpleNamespace(runs=lambda *words, **more: asked.append((words, more)) or there)

    monkeypatch.setattr(wandb, "Api", api)
    monkeypatch.setattr("hopaas_p2p.trackers.wandb._has_key", lambda: True)

    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    tracker = WandB("group/tuning")
    known = tracker.begin(own)

    assert known == {**marks, 7: "5"}
    assert tracker._ledger["7"]["step"] == -1
    assert asked == [(("group/tuning",), {"filters": {"group": "s"}, "lazy": False})]


def test_an_error_of_wandb_is_one_line_without_a_password(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(error: Exception) -> str:
        with pytest.raises(TrackerUnreachable) as failed, WandB("tuning")._translated():
            raise error
        return str(failed.value)

    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    assert fail(OSError()) == "W&B: OSError: OSError"
    long = fail(OSError(f"{'x' * 990} http://ann:s3cret-and-more@w.example.org\nmore"))
    assert "s3cret" not in long
    assert len(long.splitlines()) == 1


def test_without_a_key_nobody_is_asked_for_one(study: Study, tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), "WANDB_API_KEY": "", "WANDB_MODE": "online"}

    done = cli("study", "export", "s", "-s", "store", "--format", "wandb", cwd=tmp_path, check=False, **home)

    assert done.returncode == 78
    assert done.stderr.startswith("hopaas-p2p: W&B has no key. Run `wandb login`, set WANDB_API_KEY, or work offline")
    (tmp_path / "netrc").write_bytes(b"machine \xff\xfe")
    assert not has_netrc_login("https://api.wandb.ai", {"NETRC": str(tmp_path / "netrc")})
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password " + "0" * 40 + "\n")
    home["WANDB_BASE_URL"] = "https://api.wandb.ai"
    program = "from hopaas_p2p.trackers.wandb import _has_key; print(_has_key())"
    asked = subprocess.run(
        [sys.executable, "-c", program], env=environment(**home), capture_output=True, text=True, timeout=60
    )
    assert asked.stdout == "True\n"


def test_the_command_writes_for_wandb_sync(study: Study, tmp_path: Path) -> None:
    words = ["study", "export", "s", "-s", "store", "--format", "wandb", "--to", "tuning"]
    done = cli(*words, cwd=tmp_path, WANDB_MODE="offline")

    assert done.stdout == ""
    assert done.stderr == f"Exported 3 trials to wandb (project tuning): {Path('wandb')}\n"
    assert sorted(runs(tmp_path)) == ["0", "1", "2", "study"]


def test_peers_keep_wandb_current_beside_a_run_of_the_programs_own(offline: WandB, tmp_path: Path) -> None:
    import wandb

    own = wandb.init(mode="offline", dir=str(tmp_path / "own"), project="mine", settings=wandb.Settings(silent=True))
    study = campaign(tmp_path, budget=2, trackers=[offline])

    def objective(trial: hopaas_p2p.Trial) -> float:
        trial.report(0.5, 1)
        own.log({"mine": 1.0})
        return 0.5

    study.optimize(objective)
    study.close()
    own.finish()

    found = runs(tmp_path)
    assert [found[key].steps("report") for key in "01"] == [[(1, 0.5)]] * 2
    assert found["study"].summary["state"] == "done"
    assert found["study"].exits == [0]


ELSEWHERE = "base_url = http://127.0.0.1:9"


@pytest.mark.parametrize("folder", ["wandb", ".wandb"])
@pytest.mark.parametrize(
    "line",
    [ELSEWHERE, "https_proxy = http://127.0.0.1:9", "[what"]
    + [
        f"{ELSEWHERE}\n{hidden}" for hidden in ("use_dot_wandb = true", "use_dot_wandb = false", "root_dir = elsewhere")
    ],
)
@pytest.mark.parametrize("moved", ["", "elsewhere"], ids=["here", "WANDB_DIR"])
def test_settings_that_came_with_a_directory_send_no_key_elsewhere(
    tmp_path: Path, folder: str, line: str, moved: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B's library takes its server from ./wandb/settings, which may lie in a clone of anybody's."""
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "settings").write_text(f"[default]\nentity = ann\n{line}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_DIR", moved)
    loaded: list[bool] = []
    monkeypatch.setattr("wandb.setup", lambda: loaded.append(True))
    with pytest.raises(ConfigurationError, match="came with this directory"):
        wandb_tracker._has_key()
    assert not loaded


def test_the_command_sends_no_key_to_where_a_clone_says(study: Study, tmp_path: Path) -> None:
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb/settings").write_text(f"[default]\n{ELSEWHERE}\nuse_dot_wandb = true\n")
    words = ["study", "export", study.name, "--format", "wandb", "--store", str(tmp_path / "store")]
    done = cli(*words, check=False, cwd=tmp_path, WANDB_API_KEY="x" * 40)
    assert done.returncode == 78
    assert "came with this directory" in done.stderr


def test_a_server_of_the_users_own_file_gets_the_key(tmp_path: Path) -> None:
    (tmp_path / "settings").write_text(f"[default]\n{ELSEWHERE}\n")
    done = subprocess.run(
        [sys.executable, "-c", "from hopaas_p2p.trackers.wandb import _has_key; print(_has_key())"],
        env=environment(WANDB_CONFIG_DIR=str(tmp_path), WANDB_API_KEY="x" * 40),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "True\n", done.stderr
