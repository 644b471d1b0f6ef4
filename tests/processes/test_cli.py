"""The command line: conventions that every command keeps, and the verbs of studies and trials."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

import hopaas_p2p
from hopaas_p2p import notes
from hopaas_p2p.cli.main import SECTIONS, cli
from hopaas_p2p.core.records import Categorical, Float, Int, TrialCreate
from hopaas_p2p.errors import InvalidInput
from hopaas_p2p.spec.space import parse_params, parse_space, spec
from hopaas_p2p.study import Study
from tests.support import cli_reference
from tests.support.processes import CLI, ROOT, SPACE, campaign, environment
from tests.support.processes import cli as run

HEAVY = ("optuna", "sqlalchemy", "rich", "msgspec", "sklearn", "psycopg2", "pandas", "numpy")


@pytest.fixture
def study(tmp_path: Path) -> Any:
    study = campaign(tmp_path, budget=20)
    study.optimize(lambda trial: trial.params["lr"], n_trials=3)
    yield study
    study.close()


def failing(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return run(*words, check=False, **options)


def said(result: subprocess.CompletedProcess[str]) -> str:
    """The one line of an error: nothing on stdout, no traceback."""
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr
    return result.stderr


# --- start -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["study", "--help"], ["trial", "ask", "--help"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys\n"
        "from hopaas_p2p.cli.main import run\n"
        f"code = run({words!r})\n"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment())
    heavy = json.loads(done.stderr.replace("'", '"'))
    if words == ["--help"]:
        assert heavy == []
    assert "optuna" not in heavy
    assert "sqlalchemy" not in heavy


def test_the_lines_of_the_help_are_those_of_the_commands() -> None:
    context = click.Context(cli)
    for name, verb in [item for verbs in SECTIONS.values() for item in verbs.items()]:
        command = cli.get_command(context, name)
        assert command is not None
        first = (command.help or "").split("\n\n")[0].replace("\n", " ")
        assert first, name
        assert verb[1], name


def test_the_reference_is_current() -> None:
    there = (ROOT / "docs" / "cli.md").read_text()
    assert there == cli_reference.reference(), "run: python -m tests.support.cli_reference > docs/cli.md"


def commands(group: click.Group, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    found: list[tuple[tuple[str, ...], click.Command]] = []
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        found += commands(command, (*path, name)) if isinstance(command, click.Group) else [((*path, name), command)]
    return found


def test_every_command_takes_json_quiet_and_debug() -> None:
    for path, command in commands(cli):
        names = {option for param in command.params for option in param.opts}
        if path in {("completion",), ("demo",), ("serve", "https")}:  # a script; a show; a log that is JSON anyway
            continue
        assert {"--json", "--quiet", "--debug"} <= names, path


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_name_our_program(shell: str) -> None:
    assert "_HOPAAS_P2P_COMPLETE" in run("completion", shell).stdout


def test_the_shell_completes_commands_and_studies(here: dict[str, Any]) -> None:
    def completed(words: str) -> list[str]:
        env = {"_HOPAAS_P2P_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()))}
        return run(**here, **env).stdout.split()

    assert "plain,study" in completed("hopaas-p2p")
    assert "plain,s" in completed("hopaas-p2p study show")


# --- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["studdy"], 2, "did you mean 'study'"),
        (["study", "show", "--nope"], 2, "--nope"),
        (["--store", "./store", "study", "list"], 2, "'--store' is not an option here. Put the options"),
        (["study", "show", "-s", "./store"], 78, "No study given. Use --study NAME, or set HOPAAS_STUDY"),
        (["study", "list", "-s", "./nowhere"], 78, "there is no store"),
        (["study", "list", "-s", "gopher://x"], 78, "no store has the scheme 'gopher'"),
        (["study", "list", "-s", "./file"], 78, "is a file"),
        (["study", "show", "nope", "-s", "./store"], 1, "there is no study 'nope'"),
        (["study", "create", "a/b", "-s", "./store"], 2, "looks like a path"),
        (["study", "create", "a\x1b[2J", "-s", "./store"], 2, "control characters"),
        (["study", "create", "s", "-s", "./store"], 1, "already exists"),
        (["study", "create", "t", "-s", "./store", "--space", "x=float(3,1)"], 2, "'x'"),
        (["study", "create", "t", "-s", "./store", "--direction", "up"], 2, "'up'"),
        (["trial", "show", "99", "--study", "s", "-s", "./store"], 1, "no trial 99"),
        (["trial", "enqueue", "lr=9", "--study", "s", "-s", "./store"], 2, "is not in float"),
        (["trial", "enqueue", "lr", "--study", "s", "-s", "./store"], 2, "NAME=VALUE"),
        (["trial", "list", "--state", "odd", "--study", "s", "-s", "./store"], 2, "'odd' is not a state"),
        (["trial", "stop", "0", "--study", "s", "-s", "./store"], 1, "COMPLETE, not RUNNING"),
        (["study", "show", "s", "--study", "t", "-s", "./store"], 2, "Name only one study"),
        (["trial", "tell", "1"], 2, "HOPAAS_TICKET"),
        (["trial", "tell", "1", "--ticket", "hp1-abc"], 2, "not a whole ticket"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_error_is_one_line_with_a_code(
    tmp_path: Path, study: Study, words: list[str], code: int, message: str
) -> None:
    (tmp_path / "file").write_text("")
    result = failing(*words, cwd=tmp_path, XDG_CONFIG_HOME=str(tmp_path))
    assert message in said(result)
    assert result.returncode == code


def test_a_traceback_is_shown_on_request_only(tmp_path: Path) -> None:
    result = failing("study", "list", "-s", "./nowhere", "--debug", cwd=tmp_path)
    assert "Traceback" in result.stderr
    assert result.returncode == 1


@pytest.mark.parametrize(
    "words",
    [
        "study list -s gopher://me:sesame@x/y",
        "study list -s postgresql:/me:sesame@x/y",
        "study list -s postgresql//me:sesame@x/y",
        "study create s -s postgresql//me:sesame@x/y",
        "doctor postgresql//me:sesame@x/y",
        "study list -s postgresql:me:sesame@x/y",
        "study list -s postgresql;//me:sesame@x/y",
        "study list -s me:sesame@x/y",
        "study list -s postgresql://x/y?passwd=sesame",
        "study list -s s3//x/y?secret_key=sesame",
        "study list -s folder://me:sesame@x/y",
        "study list -s file://me:sesame@x/y",
        "study list -s postgresql://x/y?user=me;password=sesame",
        "study list postgresql://me:sesame@x/y another",
        "admin gc postgresql://me:sesame@x/y",
        "study import s -s ./store --from s3://x/y?secret_key=sesame",
    ],
)
@pytest.mark.parametrize("debug", [[], ["--debug"]], ids=["", "debug"])
def test_a_password_is_not_shown(words: str, debug: list[str], tmp_path: Path) -> None:
    result = failing(*words.split(), *debug, cwd=tmp_path)
    assert result.stderr
    assert "sesame" not in result.stdout + result.stderr


def test_a_store_that_is_away_gives_69(tmp_path: Path) -> None:
    url = "postgresql://nobody@127.0.0.1:1/none"
    result = failing("study", "list", "-s", url, cwd=tmp_path, HOPAAS_PATIENCE="0.1")
    assert result.returncode == 69
    assert "127.0.0.1" in said(result)


def test_a_closed_pipe_ends_quietly(here: dict[str, Any]) -> None:
    env = environment(HOPAAS_STORE="./store", HOPAAS_STUDY="s")
    command = " ".join([*CLI, "study", "export"]) + " | head -c 1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True, cwd=here["cwd"], env=env)
    assert "Traceback" not in done.stderr


# --- studies -----------------------------------------------------------------------------------------------------


def test_create_defines_what_was_said(tmp_path: Path) -> None:
    words = "--budget 9 --attempts 2 --max-failures 4 --lease-ttl 7.5 --progress-timeout 60 --direction maximize"
    spaces = ["--space", "lr=float(1e-5,1e-1,log)", "--space", "n=int(1,8)", "--space", "opt=cat(adam,sgd)"]
    done = run("study", "create", "s", "-s", "./store", *words.split(), *spaces, cwd=tmp_path)
    assert done.stdout == ""
    assert "Created study 's'" in done.stderr
    shown = json.loads(run("study", "show", "s", "-s", "./store", "--json", cwd=tmp_path).stdout)
    assert shown["space"] == {"lr": "float(1e-05,0.1,log)", "n": "int(1,8)", "opt": "cat(adam,sgd)"}
    assert shown["policy"] == {
        "attempts": 2,
        "lease_ttl": 7.5,
        "max_failures": 4,
        "progress_timeout": 60.0,
        "interrupted": "fail",
    }
    assert (shown["budget"], shown["directions"], shown["state"]) == (9, ["maximize"], "open")
    again = run("study", "create", "s", "-s", "./store", "--exist-ok", *words.split(), *spaces, cwd=tmp_path)
    assert again.returncode == 0
    other = failing("study", "create", "s", "-s", "./store", "--exist-ok", "--budget", "8", cwd=tmp_path)
    assert other.returncode == 78
    assert "hopaas-p2p study set s --budget 8" in other.stderr


def test_a_study_that_cannot_be_read_leaves_no_store_behind(tmp_path: Path) -> None:
    for words in (["--space", "lr=flaot(0,1)"], ["--budget", "many"]):
        assert failing("study", "create", "s", "-s", "./store", *words, cwd=tmp_path).returncode == 2
    assert list(tmp_path.iterdir()) == []


def test_a_choice_is_shown_as_enqueue_and_space_take_it(tmp_path: Path) -> None:
    here = {"cwd": tmp_path, "HOPAAS_STORE": "store", "HOPAAS_STUDY": "s"}
    run("study", "create", "--space", "a=cat(null,None)", "--space", "b=cat(true,True)", **here)
    run("trial", "enqueue", "a=null", "b=true", **here)
    run("trial", "enqueue", "a=None", "b=True", **here)
    listed = run("trial", "list", **here).stdout
    assert "a=null b=true" in listed
    assert "a=None b=True" in listed


def test_list_and_show(here: dict[str, Any], study: Study) -> None:
    notes.save_note(study, "# The plan\n\nmore")
    notes.change_tags(study, add=["gpu"])
    table = run("study", "list", **here).stdout
    assert table.splitlines()[0].split() == ["STUDY", "STATE", "TRIALS", "RUNNING", "FAILED", "BEST", "NOTE"]
    assert "#gpu The plan" in table
    assert "3/20" in table
    (listed,) = json.loads(run("study", "list", "--json", **here).stdout)
    assert listed["counts"]["COMPLETE"] == 3
    assert listed["best"]["values"] == [study.best_trial.value]
    running = study.ask()
    shown = json.loads(run("study", "show", "--json", **here).stdout)
    assert sum(shown["peers"].values()) == 1
    text = run("study", "show", **here).stdout
    assert "4 (1 RUNNING, 3 COMPLETE)" in text
    assert "lr: float(0.0001,0.1,log)" in text
    study.tell(running, 1.0)


def test_an_empty_store_lists_no_studies(tmp_path: Path) -> None:
    hopaas_p2p.open_storage(str(tmp_path / "store")).close()
    done = run("study", "list", "-s", "./store", cwd=tmp_path)
    assert (done.stdout, "study create" in done.stderr) == ("", True)
    assert json.loads(run("study", "list", "-s", "./store", "--json", cwd=tmp_path).stdout) == []


def test_the_audit_says_who_did_what_and_what_was_refused(here: dict[str, Any], study: Study) -> None:
    run("study", "pause", **here)
    peer, log = study.storage.peer, study.handle.log
    (verdict,) = peer.commit(log, TrialCreate())  # as if it had not heard of the pause
    assert verdict.refusal == "paused"
    lines = json.loads(run("study", "show", "--audit", "--json", **here).stdout)
    assert lines[0]["kind"] == "study.define"
    assert [line["lsn"] for line in lines] == sorted(line["lsn"] for line in lines)
    assert {"peer.join", "trial.create", "trial.finish", "study.control"} <= {line["kind"] for line in lines}
    assert lines[-1]["refused"] == "paused"
    assert all(line["time"] for line in lines)
    assert lines[-1]["claimed"].endswith(os.uname().nodename)
    table = run("study", "show", "--audit", **here).stdout
    assert "REFUSED (paused)" in table


def test_control(here: dict[str, Any], study: Study) -> None:
    run("study", "pause", **here)
    assert study.state.status == "paused"
    run("study", "set", "--budget", "30", **here)
    run("study", "resume", **here)
    assert (study.state.status, study.state.budget) == ("running", 30)
    trial = study.ask()
    done = json.loads(run("study", "stop", "--trials", "--json", **here).stdout)
    assert done == {"state": "stopped", "running": [trial.number]}
    assert trial.stop_requested == "the study is stopped"
    study.tell(trial, 1.0)
    run("study", "set", "--budget", "none", **here)
    run("study", "resume", **here)
    assert (study.state.status, study.state.budget) == ("running", None)


def test_resume_says_which_limit_still_ends_the_study(here: dict[str, Any], study: Study) -> None:
    run("study", "set", "--budget", "3", **here)
    said = run("study", "resume", **here).stderr
    assert "its budget is used up: 3 of 3 trials used. To run more trials: hopaas-p2p study set s" in said
    run("study", "set", "--budget", "until.target=1e9", **here)
    said = run("study", "resume", **here).stderr
    assert "its budget is used up: the target 1e+09 is reached." in said


@pytest.mark.parametrize(("answer", "said"), [("n\n", "Nothing was deleted"), ("", "To skip the question: --yes")])
def test_rm_asks_first(here: dict[str, Any], answer: str, said: str) -> None:
    env = environment(HOPAAS_STORE="./store", HOPAAS_STUDY="s")
    command = [*CLI, "study", "rm"]
    no = subprocess.run(command, input=answer, capture_output=True, text=True, check=False, cwd=here["cwd"], env=env)
    assert no.returncode == 1
    assert "Delete 's' with 3 trials?" in no.stderr
    assert said in no.stderr
    assert run("study", "rm", "--yes", **here).stdout == ""
    assert run("study", "list", "--json", **here).stdout.strip() == "[]"


def test_notes_are_the_dashboards_and_tags_are_ours(here: dict[str, Any], study: Study) -> None:
    from optuna_dashboard import get_note, save_note

    run("study", "note", "-m", "# Ours", **here)
    assert get_note(study) == "# Ours"
    save_note(study, "theirs " * 1000)
    assert run("study", "note", **here).stdout.strip() == ("theirs " * 1000).strip()
    run("study", "note", "-m", "short", **here)
    assert get_note(study) == "short"
    run("study", "note", "-m", "", **here)
    assert get_note(study) == ""
    run("trial", "note", "1", "-m", "of a trial", **here)
    trial_id = study.trials[1]._trial_id
    attributes = study.storage.get_study_system_attrs(study.study_id)
    from optuna_dashboard._note import get_note_from_system_attrs

    assert get_note_from_system_attrs(attributes, trial_id)["body"] == "of a trial"
    assert run("study", "tag", "-a", "gpu", "-a", "long run", **here).stdout.split("\n")[:2] == ["gpu", "long run"]
    assert json.loads(run("study", "tag", "-r", "gpu", "--json", **here).stdout) == {"tags": ["long run"]}
    run("trial", "tag", "2", "-a", "odd", **here)
    assert notes.tags_of(study, 2) == ["odd"]
    assert failing("study", "tag", "-a", "a\x1bb", **here).returncode == 2
    assert failing("trial", "tag", "77", **here).returncode == 1


# --- trials ------------------------------------------------------------------------------------------------------


def test_trial_list_sorts_and_selects(here: dict[str, Any], study: Study) -> None:
    study.tell(study.ask(), state="fail", reason="broken\nTraceback")
    rows = json.loads(run("trial", "list", "--json", **here).stdout)
    assert [row["number"] for row in rows] == [0, 1, 2, 3]
    best = json.loads(run("trial", "list", "--sort", "value", "--limit", "1", "--json", **here).stdout)
    assert best[0]["number"] == study.best_trial.number
    failed = run("trial", "list", "--state", "fail,waiting", **here).stdout
    assert len(failed.splitlines()) == 2
    assert "broken" in failed


def test_a_list_by_value_begins_with_the_front_of_several_objectives(tmp_path: Path) -> None:
    study = hopaas_p2p.open_study(tmp_path / "store", "two", directions=["minimize", "maximize"])
    for values in ((1.0, 1.0), (2.0, 0.0), (3.0, 3.0)):
        study.tell(study.ask(), values)
    here = {"cwd": tmp_path, "HOPAAS_STORE": "store", "HOPAAS_STUDY": "two"}
    shown = run("study", "show", **here).stdout
    assert "2 trials on the Pareto front; to list: hopaas-p2p trial list --study two --sort value" in shown
    listed = json.loads(run("trial", "list", "--sort", "value", "--json", **here).stdout)
    assert [row["number"] for row in listed] == [0, 2, 1]
    study.close()


def test_trial_show_tells_the_whole_story(here: dict[str, Any], study: Study) -> None:
    trial = study.ask()
    trial.report(0.5, 3)
    trial.set_user_attr("seed", 7)
    study.storage.flush()
    taken = json.loads(run("trial", "requeue", str(trial.number), "--json", **here).stdout)
    shown = json.loads(run("trial", "show", str(trial.number), "--json", **here).stdout)
    assert shown["reports"] == {"3": 0.5}
    assert shown["user_attrs"] == {"seed": 7}
    assert [(one["how"], one["why"]) for one in shown["history"]] == [("taken over", "requeued by hand")]
    assert shown["retried_by"] == taken["numbers"][0]
    assert shown["provenance"]["pid"] == str(os.getpid())
    text = run("trial", "show", str(trial.number), **here).stdout
    assert re.search(r"^Reason +requeued by hand", text, re.MULTILINE)
    assert re.search(r"^Owners +epoch 1: .*, taken over: requeued by hand$", text, re.MULTILINE)
    assert re.search(r"^Attempt +1, retried by #4", text, re.MULTILINE)
    assert "epoch 2" not in text, "nobody had it after it was taken away"
    study.handle.release(study.ask().number, reason="pre-empted")
    text = run("trial", "show", str(taken["numbers"][0]), **here).stdout
    assert re.search(r"^Owners +epoch 1: .*, returned: pre-empted$", text, re.MULTILINE)


def test_enqueue_requeue_and_stop(here: dict[str, Any], study: Study) -> None:
    (number,) = run("trial", "enqueue", "lr=0.01", "depth=3", "--attr", "why=hunch", **here).stdout.split()
    assert "lr=0.01 depth=3" in run("trial", "list", "--state", "waiting", **here).stdout
    trial = study.ask()
    assert (trial.number, trial.params) == (int(number), {"lr": 0.01, "depth": 3})
    assert trial.user_attrs == {"why": "hunch"}
    run("trial", "stop", number, "--reason", "too slow", **here)
    assert trial.stop_requested == "too slow"
    study.tell(trial, state="pruned")
    (again,) = run("trial", "requeue", number, **here).stdout.split()
    run("trial", "stop", again, **here)
    assert study.state.trials[int(again)].reason == "withdrawn by hand"


# --- what others wrote does no harm ------------------------------------------------------------------------------


def test_text_of_other_peers_cannot_move_the_cursor(here: dict[str, Any], study: Study) -> None:
    evil = "\x1b[2J\x9b31m[red]x\u202e\r"
    study.set_user_attr(evil, evil)
    trial = study.ask()
    trial.set_user_attr(evil, evil)
    study.tell(trial, state="fail", reason=evil)
    notes.save_note(study, evil)
    for words in (["study", "list"], ["study", "show"], ["study", "show", "--audit"], ["study", "note"]):
        shown = run(*words, **here).stdout
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", shown), words
    for words in (["trial", "list"], ["trial", "show", str(trial.number)], ["watch", "--once"]):
        shown = run(*words, **here).stdout
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", shown), words


def on_a_terminal(*words: str, cwd: Path, **env: str) -> str:
    """What a command prints on a terminal of 80 columns."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [*CLI, *words],
        stdout=follower,
        stderr=follower,
        stdin=follower,
        cwd=cwd,
        env=environment(COLUMNS="80", TERM="xterm", **env),
    )
    os.close(follower)
    text = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # the other end was closed
            break
        if not part:
            break
        text += part
    os.close(leader)
    process.wait(30)
    return text.decode()


def test_a_terminal_gets_colours_unless_no_color_and_80_columns(here: dict[str, Any], study: Study) -> None:
    study.tell(study.ask(), state="fail", reason="a very long reason " * 20)
    coloured = on_a_terminal("trial", "list", **here)
    assert "\x1b[32mCOMPLETE" in coloured
    plain = on_a_terminal("trial", "list", NO_COLOR="1", **here)
    assert "\x1b" not in plain
    assert max(map(len, plain.splitlines())) <= 80
    piped = run("trial", "list", **here).stdout
    assert max(map(len, piped.splitlines())) > 80


# --- small languages ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("x=float(1e-5,1e-1,log)", Float(1e-5, 1e-1, log=True)),
        ("x = float( 0 , 1 , step=0.25 )", Float(0.0, 1.0, step=0.25)),
        ("x=float(0,10,step=1)", Float(0.0, 10.0, step=1.0)),
        ("x=float(0.123456789,1)", Float(0.123456789, 1.0)),
        ("x=int(1,8)", Int(1, 8)),
        ("x=int(1,1024,log)", Int(1, 1024, log=True)),
        ("x=int(0,10,step=5)", Int(0, 10, step=5)),
        ("x=cat(adam,sgd)", Categorical(("adam", "sgd"))),
        ('x=cat(1,2.5,true,null,"1","a,b",a b)', Categorical((1, 2.5, True, None, "1", "a,b", "a b"))),
        ("x=log(1e-5,1e-1)", Float(1e-5, 1e-1, log=True)),
    ],
)
def test_a_space_is_read_and_written(text: str, meant: Any) -> None:
    assert parse_space([text]) == {"x": meant}
    assert parse_space([f"x={spec(meant)}"]) == {"x": meant}


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "x=float",
        "x=float(1)",
        "x=float(a,b)",
        "x=int(1.5,2)",
        "x=cat()",
        "x=odd(1)",
        "x=float(0,1,lg)",
        "=int(1,2)",
        "x=float(0,1,step=a)",
        "x=float(0,1,step=1,step=2)",
        "x=int(1,2",
        'x=cat("a)',
        "x=float(0,1);import os",
    ],
)
def test_a_space_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_space([text])


def test_parameters_are_found_among_choices_by_their_text() -> None:
    space = {"o": Categorical(("1", True, None)), "x": SPACE["lr"]}
    assert parse_params(["o=1", "x=0.5"], space) == {"o": "1", "x": 0.5}
    assert parse_params(["o=true"], space) == {"o": True}
    with pytest.raises(InvalidInput, match="twice"):
        parse_params(["x=1", "x=2"], space)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_command_runs_though_the_shell_closed_a_stream(closed: str, tmp_path: Path) -> None:
    command = f"{sys.executable} -m hopaas_p2p.cli.main study"
    script = f"{command} create s -s ./store {closed} && {command} list -s ./store {closed}"

    done = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)

    assert (done.returncode, "Error" in done.stderr) == (0, False)
    assert [
        one["name"] for one in json.loads(run("study", "list", "-s", "./store", "--json", cwd=tmp_path).stdout)
    ] == ["s"]
