"""Nothing that travels through a store is executed: by a shell, a browser, a spreadsheet or a terminal."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest

import hopaas_p2p
from dashboard_app.views.table import passing
from dashboard_app.views.table import table as table_of
from hopaas_p2p.analysis.table import TrialTable
from hopaas_p2p.core.catalog import checked_name
from hopaas_p2p.core.records import Categorical, Float, PeerJoin, TrialCreate
from hopaas_p2p.core.state import COMPLETE, WAITING
from hopaas_p2p.errors import InvalidInput
from hopaas_p2p.moving import export_study, sweeps, tables
from hopaas_p2p.moving.records import of_state
from hopaas_p2p.ports.command import DoesNotFit, fill_in, variables
from hopaas_p2p.ports.worker import Worker
from tests.support.dashboard_studies import FAIL, Scribe
from tests.support.processes import cli

EVIL = "$(touch /tmp/evil)"


def test_the_number_of_a_trial_is_no_parameter() -> None:
    assert fill_in(["echo", "{trial}"], {"trial": EVIL}, 7) == ["echo", "7"]


COMMANDS = [
    ["sh", "-c", "train {x}"],
    ["bash", "-cx", "train {x}"],
    ["bash", "-c", "--", "train {x}"],
    ["sh", "-c", 'train "$1"', "sh", "{x}"],
    ["env", "A=1", "/bin/bash", "-lc", "train {x}"],
    ["python3", "-c{x}"],
    ["perl", "-e{x}"],
    ["node", "-p", "{x}"],
    ["awk", "{x}", "file"],
    ["ssh", "{x}", "host", "true"],
    ["ssh", "host", "train '{x}'"],
    ["parallel", "train", ":::", "{x}"],
    ["sbatch", "--wait", "--wrap=train {x}"],
    ["su", "nobody", "-c", "train {x}"],
    ["make", "X={x}"],
    ["perl", "-e", "train {x}"],
    ["bash", "-lc", "module load gpu && train --text '{x}' > log"],
    ["train", '{{"text": "{x}"}}'],
    ["./train", "--text", "{x}"],
    ["python", "train.py", "{x}"],
]
ACTIVE = [EVIL, "a;b", "`id`", "a|b", "a&b", "a>b", "a\nb", "'; id; '", 'system("id")', "-oProxyCommand=id", "--eval"]
ACTIVE += [
    "../../x",
    "a..b",
    "cosine decay",
    "[64, 32]",
    "é",
    "\u0430",
    "",
    "a\0b",
    "\ud800",
    "a\n",
    "~",
    "a*",
    "!x",
    "x\\",
]
ACTIVE += ["a\0b"]
EVALUATED = ["eval+v112.114.105.110.116", "eval-v112.114", "qx/id/", "qx:id:", "%x/id/", "os.environ"]
PLAIN = ["adam", "a/b.c:d=e,f", "1e-3", "x+y", "50%", "me@here", "/data/v1_2", "A-b"]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_text_does_not_become_code(command: list[str]) -> None:
    """Which programs take their words for code nobody can list, so what could be code goes into no word at all."""
    for number in (0.5, -3, True, None, float("-inf")):
        assert json.dumps(number) in " ".join(fill_in(command, {"x": number}, 1))
    may_be_program = any("train {x}" in word for word in command)
    for text in PLAIN if not may_be_program else ["adam", "v1_2"]:
        assert text in " ".join(fill_in(command, {"x": text}, 1))
    for text in ACTIVE if not may_be_program else [*ACTIVE, *EVALUATED]:
        with pytest.raises(InvalidInput, match="HOPAAS_PARAM_x"):
            fill_in(command, {"x": text}, 1)


@pytest.mark.parametrize(
    ("word", "quoted"),
    [
        ("f '{x}'", True),
        ("""f --a='1' --b "it's" '{x}'""", True),
        ("""python -c "f('a', '{x}')\"""", True),
        ("""sh -c 'f "{x}"'""", True),
        ("f 'a'{x}'b'", False),
        ("f 'a' '{y}'{x}'b'", False),
        ("""python -c "f('a'{x}'b')\"""", False),
        ("""f "it's" 'a'{x}'b'""", False),
        ("""f "a'b'"'a'{x}'b'""", False),
        (r"f \'{x}'", False),
        (r"f 'a\'{x}'", False),
    ],
)
def test_a_text_that_stands_between_two_other_texts_is_not_between_quotes(word: str, *, quoted: bool) -> None:
    with contextlib.nullcontext() if quoted else pytest.raises(DoesNotFit, match="or be quoted"):
        fill_in([word], {"x": "eval+v49.50", "y": "name"}, 1)


@pytest.mark.parametrize(
    ("word", "params"),
    [
        ("{a}{b}", {"a": ".", "b": "./etc"}),
        ("{a}.{b}", {"a": "x/", "b": "./y"}),
        ("data/.{a}", {"a": "./etc"}),
        ("{n}{a}", {"n": -1, "a": "rf"}),
    ],
)
def test_texts_do_not_make_together_what_none_may_be_alone(word: str, params: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="becomes"):
        fill_in(["cp", word], params, 1)
    assert fill_in(["cp", "-{a}", "../{a}"], {"a": "r"}, 1) == ["cp", "-r", "../r"]


def test_a_command_is_refused_for_any_choice_of_its_parameters_before_the_first_trial(tmp_path: Path) -> None:
    space = {"kind": Categorical((1, "adam", EVIL)), "other": Categorical((EVIL, "sgd"))}
    study = hopaas_p2p.open_study(str(tmp_path / "store"), "s", space=space)
    with pytest.raises(InvalidInput, match=r"kind may be '\$\(touch.*HOPAAS_PARAM_kind"):
        Worker(study, ["echo", "{trial}", "{{other}}", "--kind={kind}"])
    assert study.trials == []
    Worker(study, ["echo", "{trial}", "{{other}}"], logs=tmp_path / "logs")
    study.close()


def test_a_text_that_comes_later_fails_its_trial_with_the_reason(tmp_path: Path) -> None:
    """Another user queued it after the worker had checked the space, with choices that the space does not have."""
    study = hopaas_p2p.open_study(str(tmp_path / "store"), "s", budget=1)
    study.set_space({"kind": Categorical(("adam",))})
    worker = Worker(study, ["echo", '{{"value": 1, "kind": "{kind}"}}'], logs=tmp_path / "logs", max_trials=1)
    study.handle.say(TrialCreate(WAITING, params={"kind": 0.0}, dists={"kind": Categorical((EVIL,))}))
    worker.work()
    assert [trial.state.name for trial in study.trials] == ["FAIL"]
    assert "the study has no parameter 'kind'" in study.state.trials[0].reason
    study.close()


@pytest.mark.parametrize("text", [EVIL, "cosine decay", "a\nb"])
def test_every_text_reaches_a_command_by_its_environment(text: str, tmp_path: Path) -> None:
    space = {"a kind": Categorical((text,))}
    study = hopaas_p2p.open_study(str(tmp_path / "store"), "s", space=space, budget=1)
    Worker(study, ["sh", "-c", 'printf %s "$HOPAAS_PARAM_a_kind"'], logs=tmp_path / "logs").work()
    assert (tmp_path / "logs" / "s" / "0.log").read_text() == text
    study.close()


def test_a_trial_that_no_program_can_be_given_fails_and_its_worker_goes_on(tmp_path: Path) -> None:
    long, names = "a" * 60_000, ("x", "y", "z")
    space = dict.fromkeys(names, Categorical((long, "b")))
    study = hopaas_p2p.open_study(str(tmp_path / "store"), "s", space=space, budget=3)
    note = TrialCreate(WAITING, params={**dict.fromkeys(names, 1.0), "note": 0.0}, dists={"note": Categorical((long,))})
    for one in (note, TrialCreate(WAITING, params=dict.fromkeys(names, 0.0))):
        study.handle.say(one)
    study.enqueue_trial(dict.fromkeys(names, "b"))
    said: list[str] = []
    command = ["sh", "-c", """env | grep -q note || echo '{"value": 1}'"""]
    Worker(study, command, logs=tmp_path / "logs", say=said.append).work()
    assert len(study.trials) >= 3
    ended = [(one.state.name, one.reason) for one in study.state.trials]
    assert ended[:3] == [
        ("COMPLETE", None),
        ("FAIL", "the parameters are longer than the system allows for a program"),
        ("COMPLETE", None),
    ]
    assert max(map(len, said)) < 1000
    study.close()


def test_the_line_that_starts_a_sweeps_jobs_is_words_and_no_code(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    name = "lr;touch EVIL;#"
    path.write_text(
        f'method: random\ncommand: ["${{args}}", "{{x}};$(id)"]\nparameters: {{"{name}": {{min: 0.1, max: 1.0}}}}'
    )
    told = sweeps.read(path)
    assert shlex.split(told.command or "") == [f"--{name}={{{name}}}", "{x};$(id)"]
    path.write_text('method: random\nparameters: {"a\\nb": {min: 0.1, max: 1.0}}')
    with pytest.raises(InvalidInput, match="line break"):
        sweeps.read(path)


@pytest.mark.parametrize("text", ["a\0b", "\ud800"])
def test_a_text_that_no_environment_holds_is_in_the_json_only(text: str) -> None:
    assert variables({"x": text, "y": 1.5}) == {"HOPAAS_PARAM_y": "1.5"}


def test_a_carriage_return_begins_no_row() -> None:
    scribe = Scribe(space={"x": Float(0, 1)})
    scribe.say(
        "mallory", TrialCreate(COMPLETE, user={"a": '"b\\r=1+1"', "c\r=3+3": "1"}, values=(1.0,), reason="c\r\r=2+2")
    )
    text = "".join(tables.dump_csv(of_state(scribe.state)))
    assert "\r" not in text
    assert len(list(csv.reader(io.StringIO(text)))) == 2


FORMULAS = [
    f"{before}=1+1" for before in (*map(chr, range(32)), "\0\0", "\0\t", "x;", "x\t", "x\n", ";", 'x;"', "\r\n")
]
FORMULAS += [
    "+1",
    "-1",
    "@SUM(1)",
    "\uff1d1",
    "\uff0b1",
    "\uff0d1",
    "\uff201",
    "x;-1",
    "x\t@SUM(1)",
    '";=1;"',
    'x";=1;"',
]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_no_cell_is_a_formula_wherever_a_spreadsheet_splits_the_rows(separator: str) -> None:
    """Excel splits at the separator of its language, and LibreOffice skips a NUL in front of a formula."""
    scribe = Scribe(space={"x": Float(0, 1)})
    for text in FORMULAS:
        user = {"a": json.dumps(text), text: "1"}
        scribe.say("mallory", TrialCreate(COMPLETE, user=user, values=(1.0,), reason=text))
    text = "".join(tables.dump_csv(of_state(scribe.state)))
    cells = [cell for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator) for cell in row]
    controls, signs = "".join(map(chr, range(32))), tuple("=+-@\uff1d\uff0b\uff0d\uff20")
    assert [cell for cell in cells if cell.lstrip(controls).startswith(signs)] == []


def test_no_cell_of_the_dashboards_table_is_a_formula() -> None:
    """Streamlit saves it as CSV as it is."""
    pytest.importorskip("pandas")
    scribe = Scribe(space={"=1+1": Float(0, 1), "k": Categorical(("=2+2", "+1"))})
    scribe.say("mallory", PeerJoin({"site": "=3+3", "host": "-3+3"}))
    for kind in (0.0, 1.0):
        params = {"=1+1": 0.5, "k": kind}
        scribe.say("mallory", TrialCreate(FAIL, params=params, reason="@SUM(1)\n=4+4"))
    columns = TrialTable.of(scribe.state)
    shown = table_of(scribe.state, columns, passing(columns), tags={0: ["=5+5"]}, lines={1: "=6+6"})
    texts = [*shown.columns, *(one for column in shown for one in shown[column] if isinstance(one, str))]
    assert len(texts) > 20
    assert [one for one in texts if one.startswith(tuple("=+-@"))] == []


def test_what_a_csv_quotes_for_spreadsheets_is_read_as_it_was() -> None:
    texts = ["=1", "x;=1", "x\t-1", "first\n- second", "\n@x", 'x;"=1"', "a;b", "it's; fine"]
    texts += ["'=1", "'-1'", "''+1", "x;'=1", "x\t''-1", 'x;\'"=1"', "'"]  # with apostrophes of their own
    scribe = Scribe(space={"x": Float(0, 1)})
    for text in texts:
        scribe.say("ann", TrialCreate(COMPLETE, user={"a": json.dumps(text)}, values=(1.0,), reason=text))
    lines = io.StringIO("".join(tables.dump_csv(of_state(scribe.state))), newline="")
    read = tables.load_csv(lines, space={}, name="s").trials.values()
    assert [one.reason for one in read] == [json.loads(one.user["a"]) for one in read] == texts


def test_a_completed_name_is_one_word_and_no_option(tmp_path: Path) -> None:
    """A shell puts what completes a word into the line as it is."""
    for name in ("x$(touch${IFS}pwned)", "y;id", "*", "two words", "--store=https:evil", "run-7"):
        hopaas_p2p.open_study(tmp_path, name).close()
    env = {"_HOPAAS_P2P_COMPLETE": "bash_complete", "COMP_WORDS": "hopaas-p2p study show ", "COMP_CWORD": "3"}
    assert cli(cwd=tmp_path, HOPAAS_STORE=str(tmp_path), **env).stdout.split() == ["plain,run-7"]


def test_a_command_that_a_message_recommends_is_words_and_no_code() -> None:
    """Studies, whose names others choose, are quoted in it."""
    bare = re.compile(r"hopaas-p2p [a-z -]*\{(?:(?:self\.)?(?:study|name|study\.name)|store\.leads_to)\}")
    files = Path(hopaas_p2p.__file__).parent.rglob("*.py")
    found = [(file.stem, line) for file in files for line in bare.findall(file.read_text())]
    assert found == []


def test_an_export_to_a_terminal_moves_no_cursor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = hopaas_p2p.open_study(str(tmp_path), "s")
    study.handle.say(TrialCreate(WAITING, user={"a": '"\u009b31m\u202e"'}))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    export_study(study, "-")
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
    from dashboard_app.optuna_server import confined

    def app(_environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/html")])
        return [b"<script>"]

    heads: list[dict[str, str]] = []
    for path in ("/artifacts/0/0/0123abcd", "/dashboard"):
        request = {"PATH_INFO": path, "REQUEST_METHOD": "GET"}
        confined(app, actions=False)(request, lambda _status, headers: heads.append(dict(headers)))
    assert heads[0]["Content-Disposition"] == "attachment"
    assert heads[0]["X-Content-Type-Options"] == "nosniff"
    assert heads[0]["Content-Security-Policy"].startswith("sandbox")
    assert "Content-Disposition" not in heads[1]


@pytest.mark.parametrize("path", ["/csv/0", "/\xffcsv/0/"])
def test_a_table_of_optunas_dashboard_which_may_hold_formulas_is_refused(path: str, tmp_path: Path) -> None:
    optuna_dashboard = pytest.importorskip("optuna_dashboard")
    pytest.importorskip("streamlit")
    from dashboard_app.optuna_server import RequestedFiles, confined

    study = hopaas_p2p.open_study(str(tmp_path), "s", space={"c": Categorical(("=cmd|' /C calc'!A0",))})
    study.tell(study.ask(), 1.0)
    said: list[str] = []
    request: dict[str, Any] = {}
    setup_testing_defaults(request)
    app = confined(optuna_dashboard.wsgi(study.storage, RequestedFiles(study.storage)), actions=False)
    body = b"".join(app(request | {"PATH_INFO": path}, lambda status, *_: said.append(status)))
    study.close()
    assert said == ["403 Forbidden"]
    assert b"cmd" not in body
    assert b"page Trials" in body


def test_docs_load_checkpoints_without_running_them() -> None:
    docs = Path(__file__).parents[2] / "docs"
    calls = [line for page in docs.rglob("*.md") for line in page.read_text().splitlines() if "torch.load(" in line]
    assert calls
    assert all("weights_only=True" in line for line in calls)
