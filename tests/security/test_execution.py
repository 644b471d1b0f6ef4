"""Nothing that travels through a store is executed: by a shell, a browser, a spreadsheet or a terminal."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path
from typing import Any

import pytest

import hopaas_p2p
from hopaas_p2p.core.catalog import checked_name
from hopaas_p2p.core.records import Categorical, Float, TrialCreate
from hopaas_p2p.core.state import COMPLETE, WAITING
from hopaas_p2p.errors import InvalidInput
from hopaas_p2p.export import export_study, tables
from hopaas_p2p.export.portable import of_state
from hopaas_p2p.worker.child import fill_in
from hopaas_p2p.worker.loop import Worker
from tests.support.dashboard_studies import Scribe

EVIL = "$(touch /tmp/evil)"


def test_the_number_of_a_trial_is_no_parameter() -> None:
    assert fill_in(["echo", "{trial}"], {"trial": EVIL}, 7) == ["echo", "7"]


@pytest.mark.parametrize(
    "command",
    [
        ["sh", "-c", "train {x}"],
        ["env", "A=1", "/bin/bash", "-lc", "train {x}"],
        ["python3.11", "-c", "print('{x}')"],
        ["perl", "-e", "{x}"],
    ],
    ids=" ".join,
)
def test_a_text_does_not_become_code(command: list[str]) -> None:
    assert fill_in(command, {"x": 0.5}, 1)[-1].count("0.5") == 1
    with pytest.raises(InvalidInput, match="as an argument"):
        fill_in(command, {"x": EVIL}, 1)
    assert fill_in(["sh", "-c", 'train "$1"', "sh", "{x}"], {"x": EVIL}, 1)[-1] == EVIL


@pytest.mark.parametrize(
    "command",
    [
        ["ssh", "host", "{x}"],
        ["ssh", "host", "train '{x}'"],
        ["ssh", "host", "sh", "-c", 'train "$1"', "sh", "{x}"],
        ["parallel", "train", ":::", "{x}"],
        ["sbatch", "--wait", "--wrap=train {x}"],
        ["su", "nobody", "-c", "train {x}"],
        ["flock", "lock", "-c", "train {x}"],
        ["watch", "train {x}"],
        ["tmux", "new", "train {x}"],
        ["xargs", "-I%", "sh", "-c", "{x}"],
        ["make", "X={x}"],
        ["./train", "--text", "{x}"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("text", [EVIL, "a;b", "`id`", "a|b", "a&b", "a>b", "a\nb", "'; id; '"])
def test_a_text_that_a_shell_would_run_reaches_no_program_that_may_be_one(command: list[str], text: str) -> None:
    with pytest.raises(InvalidInput, match="sh -c"):
        fill_in(command, {"x": text}, 1)
    for harmless in ("adam", "[64, 32]", "cosine decay", "a/b.c:d=e,f"):
        if "sh" not in command[:-1]:
            assert harmless in fill_in(command, {"x": harmless}, 1)[-1]


def test_an_interpreter_at_the_beginning_takes_any_text_as_an_argument() -> None:
    for command in (["python", "train.py", "{x}"], ["env", "A=1", "sh", "-c", 'train "$1"', "sh", "{x}"]):
        assert fill_in(command, {"x": EVIL}, 1)[-1] == EVIL


def test_a_worker_refuses_a_text_in_code_before_its_first_trial(tmp_path: Path) -> None:
    study = hopaas_p2p.open_study(str(tmp_path), "s", space={"kind": Categorical((1, "a"))})
    with pytest.raises(InvalidInput, match="as an argument"):
        Worker(study, ["sh", "-c", "echo {kind}"])
    assert study.trials == []
    study.close()


def test_a_carriage_return_begins_no_row() -> None:
    scribe = Scribe(space={"x": Float(0, 1)})
    scribe.say(
        "mallory", TrialCreate(COMPLETE, user={"a": '"b\\r=1+1"', "c\r=3+3": "1"}, values=(1.0,), reason="c\r\r=2+2")
    )
    text = "".join(tables.dump_csv(of_state("s", scribe.state, 0)))
    assert "\r" not in text
    assert len(list(csv.reader(io.StringIO(text)))) == 2


def test_an_export_to_a_terminal_moves_no_cursor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = hopaas_p2p.open_study(str(tmp_path), "s")
    study.storage.say(study.study_id, TrialCreate(WAITING, user={"a": '"\u009b31m\u202e"'}))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    for form in ("jsonl", "csv"):
        export_study(study, "-", form=form)
    study.close()
    shown = capsys.readouterr().out
    assert "\\u009b31m\\u202e" in shown
    assert not {"\u009b", "\u202e"} & set(shown)


@pytest.mark.parametrize("name", ["run\u200b7", "p\u0430ypal", "\u202erun", "RU\u039d"])
def test_a_new_study_looks_like_no_other(name: str) -> None:
    with pytest.raises(InvalidInput, match="study name"):
        checked_name(name)


@pytest.mark.parametrize("name", ["run-7", "B→μν", "опыт 7", "試験"])
def test_a_name_in_any_alphabet_is_fine(name: str) -> None:
    assert checked_name(name) == name


def test_a_file_of_a_peer_is_saved_and_never_shown(tmp_path: Path) -> None:
    pytest.importorskip("optuna_dashboard")
    pytest.importorskip("streamlit")
    from dashboard_app.optuna_server import _with_files_as_downloads

    def app(_environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/html")])
        return [b"<script>"]

    heads: list[dict[str, str]] = []
    for path in ("/artifacts/0/0/0123abcd", "/dashboard"):
        _with_files_as_downloads(app)({"PATH_INFO": path}, lambda _status, headers: heads.append(dict(headers)))
    assert heads[0]["Content-Disposition"] == "attachment"
    assert heads[0]["X-Content-Type-Options"] == "nosniff"
    assert heads[0]["Content-Security-Policy"].startswith("sandbox")
    assert "Content-Disposition" not in heads[1]


def test_docs_load_checkpoints_without_running_them() -> None:
    docs = Path(__file__).parents[2] / "docs"
    calls = [line for page in docs.rglob("*.md") for line in page.read_text().splitlines() if "torch.load(" in line]
    assert calls
    assert all("weights_only=True" in line for line in calls)
