"""What the commands print for people: where a trial ran, its files, whole sentences, readable numbers."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import hopaas_p2p
from hopaas_p2p.analysis import charts
from hopaas_p2p.analysis.facts import person
from hopaas_p2p.analysis.html import table
from hopaas_p2p.analysis.spending import aligned_amounts, spending
from hopaas_p2p.analysis.table import TrialTable
from hopaas_p2p.cli import main, output
from hopaas_p2p.cli.main import cli
from hopaas_p2p.core.records import Float
from hopaas_p2p.ports.ticket import ticket_of
from hopaas_p2p.report.page import render, trials_table
from tests.support.dashboard_studies import Scribe

SPACE = {"x": Float(0.0, 1.0)}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("HOPAAS_SITE", "north")
    return f"file://{tmp_path}/store"


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command."""
    capsys.readouterr()
    code = main.run(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_words_are_singular_readable_and_name_what_is_missing(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with contextlib.closing(hopaas_p2p.open_study(store, "s", space=SPACE, budget=1)) as study:
        with study.trial() as trial:
            trial.set_user_attr("places", ["Zürich"])
            trial.tell(0.5)
        chart = charts.slice_(TrialTable.of(study.state), "x")
        assert chart is not None
        assert chart.alt.startswith("Value over x: 1 complete trial;")
    _, _, queued = said(capsys, "trial", "enqueue", "x=1", "--study", "s", "--store", store)
    assert "has used its budget (1 of 1 trials used), so" in queued
    _, shown, _ = said(capsys, "trial", "show", "0", "--study", "s", "--store", store)
    assert 'places = ["Zürich"]' in shown
    missing = str(tmp_path / "missing.csv")
    for name in ("s", "another"):
        _, _, told = said(capsys, "study", "import", name, "--from", missing, "--store", store)
        assert told == f"hopaas-p2p: {missing}: No such file or directory\n"
    assert output.time_in("last_used")({"last_used": None}) == "never"


def test_a_trial_is_listed_with_its_site_and_its_files(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.bin").write_bytes(b"x" * 1500)
    study = hopaas_p2p.open_study(store, "s", space=SPACE)
    trial = study.ask()
    trial.upload(str(tmp_path / "model.bin"))
    study.tell(trial, 0.5)
    study.close()

    _, listed, _ = said(capsys, "trial", "list", "s", "--store", store)
    _, shown, _ = said(capsys, "trial", "show", "0", "--study", "s", "--store", store)

    assert "(north)" in listed
    assert "(north)" in shown
    assert "Files" in shown
    assert "model.bin (1.5 kB)" in shown
    assert "hopaas:artifact" not in shown
    assert "sha256" not in shown


def test_a_queued_trial_ran_nowhere() -> None:
    assert output.where({"site": None, "host": None}) == "-"
    assert output.where({"site": "vm", "host": "vm"}) == "vm"
    assert output.where({"site": "north", "host": "n1"}) == "n1 (north)"


def commands(group: click.Group, context: click.Context) -> Iterator[tuple[click.Command, click.Context]]:
    """All commands below this group."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        inner = click.Context(command, info_name=name, parent=context, max_content_width=80, terminal_width=80)
        yield command, inner
        if isinstance(command, click.Group):
            yield from commands(command, inner)


def test_no_line_of_the_help_is_cut_and_no_default_has_a_needless_fraction() -> None:
    texts = [
        one.get_help(inner)
        for one, inner in commands(cli, click.Context(cli, info_name="hopaas-p2p", show_default=True))
    ]

    assert len(texts) > 50
    assert [text for text in texts if "..." in text.partition("\nCommands:")[2]] == []
    assert [text for text in texts if "default: 3600.0" in text or ".0]" in text or ".0;" in text] == []


def test_a_budget_that_is_no_number_is_refused_in_words(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, why = said(capsys, "study", "create", "s", "--budget", "many", "--store", store)

    assert code == 2
    assert "trials = 'many'" in why
    assert "Expected" not in why


def test_a_value_outside_the_space_is_named_with_the_space_as_people_write_it(
    store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hopaas_p2p.open_study(store, "s", space=SPACE).close()

    for given, value in (("7", "7"), ("true", "True")):
        code, _, why = said(capsys, "trial", "enqueue", f"x={given}", "--study", "s", "--store", store)

        assert code == 2
        assert f"x = {value} is not in float(0,1)" in why


def test_what_is_empty_is_said_on_stderr(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    hopaas_p2p.open_study(store, "s", space=SPACE).close()

    where = ("--store", store)
    assert said(capsys, "study", "note", "s", *where) == (0, "", "There is no note.\n")
    assert said(capsys, "study", "tag", "s", *where) == (0, "", "There are no tags.\n")
    assert said(capsys, "trial", "artifact", "ls", "--study", "s", *where) == (0, "", "No files yet.\n")
    _, line, _ = said(capsys, "watch", "s", "--once", *where)
    assert line.endswith("; best -; waiting until a peer runs a trial\n")


def test_a_study_that_is_missing_or_has_no_reports_has_the_same_exit_code_in_all_commands(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hopaas_p2p.open_study(store, "s", space=SPACE).close()
    where = ("--store", store)
    unknown = [("export", "none"), ("report", "none", "--to", str(tmp_path / "none.html")), ("schedule", "none")]
    assert {said(capsys, "study", *words, *where)[0] for words in unknown} == {1}
    code, _, err = said(capsys, "study", "schedule", "s", *where)
    assert (code, err) == (1, "hopaas-p2p: no trial of 's' has reported anything yet, so there is no schedule\n")


def test_tokens_of_a_directory_have_no_columns_for_a_use_that_nothing_records(
    store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["init"], ["user", "add", "ann"], ["token", "create", "ann"]):
        assert said(capsys, "admin", *words, "--store", store)[0] == 0
    heads, row = said(capsys, "admin", "token", "list", "--store", store)[1].splitlines()
    assert heads.split() == ["token", "user", "label", "created", "expires"]
    assert "never" not in row


def test_an_error_that_a_thread_has_already_logged_is_printed_once() -> None:
    code = """
        import logging, click
        from hopaas_p2p.cli import main, options
        from hopaas_p2p.errors import Denied

        @options.command("fail", study="none")
        def fail(session):
            logging.getLogger("hopaas_p2p").warning("%s", "Permission denied: ask root")
            raise Denied("Permission denied: ask root")

        main.cli.add_command(fail)
        codes = [main.run(["fail"]), main.run(["fail"])]
        raise SystemExit(codes != [77, 77])
    """
    program = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    assert done.stderr == 2 * "Permission denied: ask root\n"


def test_amounts_of_a_column_have_as_many_decimals() -> None:
    assert aligned_amounts([0.00884, 0.0001, 0, 0.0174]) == ["0.009", "<0.001", "0", "0.017"]
    assert aligned_amounts([12.3, 0.5, 0.001]) == ["12.30", "0.50", "<0.01"]
    assert aligned_amounts([12345.6, 1.2]) == ["12,346", "1"]


def test_bytes_have_a_unit() -> None:
    sizes = [output.size(one) for one in (None, 0, 999, 1500, 36_000, 999_960, 5_000_000)]
    assert sizes == ["-", "0 B", "999 B", "1.5 kB", "36.0 kB", "1.0 MB", "5.0 MB"]


def test_at_most_sixteen_verbs_stand_at_the_top() -> None:
    assert len(cli.list_commands(click.Context(cli))) <= 16


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("ask", "did you mean: hopaas-p2p trial ask "),
        ("pause", "did you mean: hopaas-p2p study pause "),
        ("list", "hopaas-p2p study list or hopaas-p2p trial list or hopaas-p2p peers list"),
        ("studdy", "did you mean 'study'?"),
    ],
)
def test_a_command_of_a_group_is_found_from_the_top(capsys: pytest.CaptureFixture[str], word: str, hint: str) -> None:
    code, _, why = said(capsys, word)

    assert code == 2
    assert hint in why


def test_every_sampler_has_a_name(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name, kind in (("tpe", "TPESampler"), ("cmaes", "CmaEsSampler"), ("grid", "BruteForceSampler")):
        where = ("--store", store, "--space", "x=int(0,3)")
        assert said(capsys, "study", "create", name, *where, "--sampler", name)[0] == 0
        with contextlib.closing(hopaas_p2p.open_study(store, name)) as study:
            assert type(study.sampler).__name__ == kind


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_an_objective_with_the_name_of_another_order_can_be_sorted_by(
    store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    study = hopaas_p2p.open_study(store, "s", space=SPACE, directions=["minimize", "maximize"])
    study.set_metric_names(["loss", "number"])
    for value in (1.0, 3.0, 2.0):
        study.tell(study.ask(), [0.0, value])
    study.close()

    def order(by: str) -> list[str]:
        _, out, _ = said(capsys, "trial", "list", "s", "--store", store, "--sort", by)
        return [line.split()[0] for line in out.splitlines()[1:]]

    assert order("number") == ["0", "1", "2"]
    assert order("value.number") == ["1", "2", "0"]


def test_a_letter_means_one_option_over_all_commands() -> None:
    meant: dict[str, set[str]] = {}
    for command, _ in commands(cli, click.Context(cli)):
        for names in (param.opts for param in command.params if isinstance(param, click.Option)):
            for letter in (one for one in names if not one.startswith("--")):
                meant.setdefault(letter, set()).add(max(names, key=len))

    assert {letter: names for letter, names in meant.items() if len(names) > 1} == {}


def test_show_says_of_several_objectives_the_size_of_the_front_and_its_ends(
    store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    study = hopaas_p2p.open_study(store, "two", space=SPACE, directions=["minimize", "maximize"])
    for values in ([1.0, 1.0], [2.0, 5.0], [3.0, 9.0], [4.0, 2.0]):
        study.tell(study.ask(), values)
    study.close()

    _, shown, _ = said(capsys, "study", "show", "two", "--store", store)

    lines = [line.split() for line in shown.splitlines()]
    assert ["Best", "3", "trials", "on", "the", "Pareto", "front;"] in [line[:7] for line in lines]
    assert [line[:5] for line in lines if line[0] == "best"] == [
        ["best", "objective", "1", "#0:", "1,"],
        ["best", "objective", "2", "#2:", "3,"],
    ]


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize(
    ("names", "heads", "columns"),
    [
        (["time", "state"], ["VALUE TIME", "VALUE STATE"], ["values_time", "values_state"]),
        (["loss", "Loss"], ["OBJECTIVE 1", "OBJECTIVE 2"], ["values_0", "values_1"]),
        (["", "loss"], ["OBJECTIVE 1", "OBJECTIVE 2"], ["values_0", "values_1"]),
    ],
)
def test_every_objective_is_listed_whatever_it_is_called(
    names: list[str], heads: list[str], columns: list[str], store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    study = hopaas_p2p.open_study(store, "two", space=SPACE, directions=["minimize", "maximize"])
    study.set_metric_names(names)
    study.tell(study.ask(), [0.25, 0.75])
    table = re.sub("<[^>]*>", " ", trials_table([0], study.state, most=1, live=True))
    study.close()

    _, listed, _ = said(capsys, "trial", "list", "two", "--store", store)
    _, exported, _ = said(capsys, "study", "export", "two", "--store", store)

    assert all(head in listed for head in [*heads, "STATE ", " TIME "])
    assert all(value in text for value in ("0.25", "0.75", "COMPLETE") for text in (listed, table, exported))
    assert exported.split(",")[1:3] == columns


def test_show_says_how_a_study_is_searched_where_that_was_chosen(
    store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hopaas_p2p.open_study(store, "s", space=SPACE).close()
    _, plain, _ = said(capsys, "study", "show", "s", "--store", store)
    said(capsys, "study", "set", "s", "--repeats", "allow", "--store", store)
    _, chosen, _ = said(capsys, "study", "show", "s", "--store", store)

    assert "Search" not in plain
    assert "Policy" not in plain
    assert "Search      repeats: allow\n" in chosen


def test_a_queued_trial_is_a_sentence_on_a_terminal_and_a_number_for_scripts(
    store: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hopaas_p2p.open_study(store, "s", space=SPACE).close()
    queue = "trial", "enqueue", "x=0.5", "--study", "s", "--store", store

    assert said(capsys, *queue)[1] == "0\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert said(capsys, *queue)[1] == "Trial 1 is queued.\n"


def test_after_a_limit_a_worker_says_which_and_leaves_at_once(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    budget = hopaas_p2p.Budget(until=hopaas_p2p.Until(target=0.5))
    study = hopaas_p2p.open_study(store, "s", space=SPACE, budget=budget)
    ticket = said(capsys, "trial", "ask", "s", "--store", store)[1]
    study.tell(study.ask(), 0.1)
    study.close()

    logs = "--logs", str(tmp_path)
    code, _, why = said(capsys, "worker", "--study", "s", "--store", store, "--no-wait", *logs, "--", "true")

    assert ticket
    assert code == 0
    assert "the target 0.5 is reached" in why
    assert "must be" not in why


def test_a_narrow_table_tells_objectives_apart_marks_the_front_and_keeps_names_whole(
    store: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    long = "a-name-that-somebody-copies-into-the-next-command"
    both = ["minimize", "minimize"]
    with contextlib.closing(hopaas_p2p.open_study(store, long, directions=both, space=SPACE)) as study:
        study.tell(study.ask(), [0.25, 0.5])
        study.tell(study.ask(), [0.75, 0.75])
        study.tell(study.ask(), state="fail", reason="a very long reason " * 30)
    _, piped, _ = said(capsys, "trial", "list", long, "--store", store)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    _, listed, _ = said(capsys, "trial", "list", long, "--store", store)
    _, studies, _ = said(capsys, "study", "list", "--store", store)

    heads, first, second, _ = piped.splitlines()
    assert [row[heads.index("FRONT") :].split()[0] for row in (first, second)] == ["yes", "-"]
    assert max(map(len, piped.splitlines())) < 240
    assert re.findall(r"OBJ\S*… \d", listed.splitlines()[0]) == ["OBJEC… 1", "OBJEC… 2"]
    assert long in studies


@pytest.mark.parametrize("command", ["worker", "run"])
def test_every_command_that_waits_for_a_trial_can_leave_instead(
    command: str, store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with contextlib.closing(hopaas_p2p.open_study(store, "s", space=SPACE)) as study:
        study.pause()

    logs = "--logs", str(tmp_path)
    code, _, why = said(capsys, command, "--study", "s", "--store", store, "--no-wait", *logs, "--", "true")

    assert (code, "the study is paused" in why) == (75, True), why


def test_a_watched_name_shows_what_nobody_sees(
    store: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "s\u202eknabb"  # written backwards, by another program than this
    Scribe(name=name).put_into(store)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    code, shown, _ = said(capsys, "watch", name, "--store", store, "--timeout", "0")
    assert code == 1
    assert "open" in shown
    assert "\u202e" not in shown


@pytest.mark.parametrize("name", ["digits.csv", "digits.study", "digits.prior"])
def test_an_export_overwrites_a_file_only_by_force(
    name: str, store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = hopaas_p2p.open_study(store, "s", space=SPACE)
    study.optimize(lambda trial: trial.params["x"], n_trials=20)
    study.close()
    there = tmp_path / name
    there.write_text("precious")
    words = ["study", "export", "s", "--store", store, "--to", str(there), *["--prior"] * (name == "digits.prior")]

    code, _, refused = said(capsys, *words)
    assert (code, there.read_text()) == (2, "precious")
    assert "already exists. Use --force to overwrite it" in refused
    assert said(capsys, *words, "--force")[0] == 0
    assert there.read_bytes() != b"precious"


def test_an_export_to_a_pipe_names_the_cause(store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hopaas_p2p.open_study(store, "s", space=SPACE).close()
    os.mkfifo(tmp_path / "s.csv")
    code, _, err = said(capsys, "study", "export", "s", "--store", store, "--to", str(tmp_path / "s.csv"))
    assert code == 1
    assert "s.csv: is not a regular file" in err


def test_a_second_study_is_exported_to_the_same_optuna_storage(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        hopaas_p2p.open_study(store, name, space=SPACE).close()
        assert said(capsys, "study", "export", name, "--store", store, "--to", str(tmp_path / "x.journal"))[0] == 0


def test_values_of_a_csv_outside_the_search_space_are_named(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hopaas_p2p.open_study(store, "s", space=SPACE).close()
    table = tmp_path / "s.csv"
    table.write_text("value,params_x,state\n1.0,0.5,COMPLETE\n2.0,1.5,COMPLETE\n3.0,-1,COMPLETE\n")

    _, _, err = said(capsys, "study", "import", "s", "--store", store, "--from", str(table))

    assert "Note: values of 'x' outside the search space, float(0,1): 2 of 3\n" in err
    assert "Imported 3 trials" in err


def test_a_guest_has_a_short_name_in_tables() -> None:
    guest = "guest-2269f9d97a63ddd5fead768d8b226d54-worker"
    assert person(guest) == "guest-2269f9…-worker"
    assert person("guest-book") == "guest-book"


@pytest.mark.parametrize(
    ("words", "said_"),
    [
        (["admin", "backup", "--store", "x"], "'--store' is not an option here. Usage: hopaas-p2p admin backup"),
        (["admin", "restore", "-s", "x"], "admin restore [OPTIONS] FILE STORE"),
        (["study", "-s", "x", "list"], "Put the options of a command after its name. (see: hopaas-p2p study --help)"),
        (["dashboard", "--port", "abc"], "'abc' is not a valid integer. (see"),
        (["trial", "report", "1", "--step", "a"], "'a' is not a valid integer. (see"),
        (
            ["study", "tag", "one", "good", "a b"],
            "extra arguments (good a b). To add tags: --add good --add 'a b' (see",
        ),
        (["trial", "tag", "3", "good"], "To add tags: --add good (see: hopaas-p2p trial tag --help)"),
    ],
)
def test_a_wrong_option_is_answered_with_the_right_one(
    words: list[str], said_: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = said(capsys, *words)
    assert code == 2
    assert said_ in err


@pytest.mark.parametrize("cells", [["-v5hLDP8 root, pid 1"], ["08gY9L_9 root", "1a root"], ["nine"], ["1", "x"]])
def test_a_peer_whose_name_begins_like_a_number_is_no_number(cells: list[str]) -> None:
    assert "hp-number" not in table(["peer"], [[one] for one in cells], label="Peers")


def test_numbers_in_a_table_are_aligned() -> None:
    cells = ["-0.5", "<0.001", "1,000", "1.2e-05", "inf", "-", "", "1 min 35 s ago", "3/10", "12 %", "5e-05"]
    assert "hp-number" in table(["value"], [[one] for one in cells], label="Values")


def test_a_trial_that_paused_is_called_so_everywhere(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    fidelity = hopaas_p2p.Rungs(min=1, max=9, eta=3)
    with contextlib.closing(hopaas_p2p.open_study(store, "s", space=SPACE, budget=3, fidelity=fidelity)) as study:
        for _ in range(4):
            trial = study.ask()
            trial.report(trial.params["x"], 0)
            trial.checkpoint(b"0", step=0)
            if trial.should_prune():
                study.tell(trial, state="pruned")
        state = study.state
        (goes_on,) = [one for one in state.trials if one.continues is not None]
        other = next(one.number for one in state.trials if one.paused and one.number != goes_on.continues)
        table = re.sub("<[^>]*>", " ", trials_table([other], state, most=1, live=True))
        page = render(state, name="s", store=store, now=datetime.datetime.now(datetime.UTC))
        study.tell(trial, state="fail")
        spent = {row["state"]: row["attempts"] for row in spending(state).rows}

    at = ("--study", "s", "--store", store)
    listed = json.loads(said(capsys, "trial", "list", "--all", "--state", "paused", "--json", *at)[1])
    pruned = json.loads(said(capsys, "trial", "list", "--all", "--state", "pruned", "--json", *at)[1])
    shown = [said(capsys, "trial", "show", str(one), *at)[1] for one in (goes_on.continues, other)]
    whole = said(capsys, "study", "show", "s", "--store", store)[1]

    assert [row["state"] for row in listed] == ["PAUSED"] * 3
    assert pruned == []
    assert all(re.search(r"State +PAUSED after 1 step\n", one) for one in shown)
    assert [f"continued by #{goes_on.number}" in one for one in shown] == [True, False]
    assert "1 FAIL, 3 PAUSED" in whole
    assert spent == {"paused": 3, "failed": 1}
    assert "PAUSED" in table
    assert "3 paused" in page
    assert "PRUNED" not in "".join([*shown, whole, table])


def test_a_command_without_effect_on_a_study_or_trial_says_so(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    study = hopaas_p2p.open_study(store, "s", space=SPACE, budget=5)
    trial = study.ask()
    words = ("pause", "Already paused: 's'"), ("stop", "Already stopped: 's'"), ("resume", "Nothing to resume in 's'")
    for word, without in words:
        for again in (False, True):
            _, _, why = said(capsys, "study", word, "s", "--store", store)
            assert (without in why) is again
    for asked in ("Trial 0 was asked to end.", "Trial 0 was already asked to end."):
        assert asked in said(capsys, "trial", "stop", "0", "--study", "s", "--store", store)[2]
    study.tell(trial, 1.0)
    study.close()


def test_a_home_of_nobody_is_named_and_the_result_that_should_go_there_is_kept(
    store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    study = hopaas_p2p.open_study(store, "s", space=SPACE)
    ticket = str(ticket_of(study, study.ask().number))
    nowhere = "~nobody-of-that-name/x"

    code, _, why = said(capsys, "trial", "tell", "0.5", "--ticket", ticket, "--store", nowhere)

    assert code == 78
    assert f"{nowhere}: there is no such user here" in why
    assert "The result is kept in" in why
    for words in (("study", "list", "--store"), ("study", "report", "s", "--store", store, "--to")):
        code, _, why = said(capsys, *words, nowhere)
        assert code == 78
        assert f"{nowhere}: there is no such user here" in why
    study.close()
