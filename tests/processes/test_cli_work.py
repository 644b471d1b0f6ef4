"""A trial from the shell: ask, report, should-prune, tell, renew, release, and what happens to a lost ticket."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

import hopaas_p2p
from hopaas_p2p.core.leases import ttl_of
from hopaas_p2p.core.records import TrialReclaim
from hopaas_p2p.errors import InvalidInput, NoSuchStudy, NotYourTrial
from hopaas_p2p.ports.ticket import Ticket, carry, ticket_of
from hopaas_p2p.study import Study
from tests.support.processes import CLI, campaign, environment
from tests.support.processes import cli as run


@pytest.fixture
def study(tmp_path: Path) -> Any:
    study = campaign(tmp_path, budget=20)
    yield study
    study.close()


def asked(here: dict[str, Any], *words: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(run("trial", "ask", "--json", *words, **here).stdout)
    return result


def code(*words: str, **options: Any) -> int:
    return run(*words, check=False, **options).returncode


def reclaim(study: Study, number: int) -> None:
    study.handle.say(TrialReclaim(number, study.state.trials[number].epoch))


# --- the commands ------------------------------------------------------------------------------------------------


@pytest.mark.path
def test_a_trial_from_the_shell(here: dict[str, Any], study: Study) -> None:
    printed = dict(line.split("=", 1) for line in run("trial", "ask", **here).stdout.splitlines())
    assert printed.keys() == {"lr", "depth", "HOPAAS_TICKET"}
    ticket = {"cwd": here["cwd"], "HOPAAS_TICKET": printed["HOPAAS_TICKET"]}  # knows its store and study
    assert study.trials[0].params == {"lr": float(printed["lr"]), "depth": int(printed["depth"])}
    assert run("trial", "report", "0.5", "--step", "1", **ticket).stdout == ""
    run("trial", "report", "-0.25", "--step", "2", **ticket)
    ignored = run("trial", "report", "7", "--step", "2", "--json", **ticket)
    assert json.loads(ignored.stdout) == {"number": 0, "step": 2, "value": -0.25}
    assert (
        "Trial 0 keeps its first report at step 2, -0.25." in run("trial", "report", "7", "--step=2", **ticket).stderr
    )
    assert study.trials[0].intermediate_values == {1: 0.5, 2: -0.25}
    run("trial", "log", "auc=0.75", "loss=-1e-3", "--step", "2", **ticket)
    assert study.state.trials[0].metrics == {"auc": {2: 0.75}, "loss": {2: -1e-3}}
    assert "auc = 0.75 at step 2 (1 step)" in run("trial", "show", "0", **here).stdout
    assert code("trial", "should-prune", **ticket) == 0
    assert code("trial", "renew", **ticket) == 0
    told = run("trial", "tell", "-1.5e-3", **ticket)
    assert (told.stdout, "Trial 0 is COMPLETE" in told.stderr) == ("", True)
    assert study.trials[0].values == [-1.5e-3]
    again = run("trial", "tell", "2", check=False, **ticket)
    assert again.returncode == 1
    assert "already finished" in again.stderr


def test_the_shells_own_words(here: dict[str, Any], study: Study) -> None:
    ask = " ".join([*CLI, "trial", "ask", "--shell"])
    tell = " ".join([*CLI, "trial", "tell"])
    script = f'eval "$({ask})" && {tell} "$HOPAAS_PARAM_lr" && echo "$HOPAAS_TRIAL"'
    env = environment(HOPAAS_STORE="./store", HOPAAS_STUDY="s")
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True, cwd=here["cwd"], env=env)
    assert done.stdout.strip() == "0"
    assert study.trials[0].value == study.trials[0].params["lr"]
    for store, status in (("./store", 3), ("./nowhere", 78)):
        study.stop_all()
        script = f'HOPAAS_TICKET=old; eval "$({ask} --store {store})"; echo "$? $HOPAAS_TICKET."'
        printed = subprocess.check_output(["sh", "-c", script], text=True, cwd=here["cwd"], env=env)
        assert printed == f"{status} .\n", "or a loop over `eval` would never end"


def test_what_a_study_holds_is_never_run_by_the_shell(tmp_path: Path) -> None:
    evil = "$(touch pwned); `touch pwned`"
    space = {"x; touch pwned": hopaas_p2p.Categorical((evil, evil + " ")), "PATH": hopaas_p2p.Int(1, 2)}
    hopaas_p2p.open_study(str(tmp_path / "store"), "s", space=space).close()
    printed = run("trial", "ask", "--shell", cwd=tmp_path, HOPAAS_STORE="./store", HOPAAS_STUDY="s").stdout
    done = subprocess.run(
        ["sh", "-c", f'{printed}\nprintf %s "$HOPAAS_PARAM_x__touch_pwned"; command -v ls'],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env=environment(),
    )
    assert evil in done.stdout
    assert not (tmp_path / "pwned").exists()


def test_tell_pruned_and_failed(here: dict[str, Any], study: Study) -> None:
    for words in (["--state", "pruned"], ["--state", "fail", "--reason", "out of memory"]):
        run("trial", "tell", *words, "--ticket", asked(here)["ticket"], **here)
    assert [trial.state.name for trial in study.state.trials] == ["PRUNED", "FAIL"]
    assert study.state.trials[1].reason == "out of memory"


@pytest.mark.parametrize("words", [["nan"], ["high"], ["1", "2"], [], ["1", "--state", "fail"], ["--reasn", "x"]])
def test_a_wrong_value_is_refused_and_the_trial_goes_on(here: dict[str, Any], study: Study, words: list[str]) -> None:
    ticket = asked(here)["ticket"]
    result = run("trial", "tell", *words, "--ticket", ticket, check=False, **here)
    assert result.returncode == 2
    assert study.state.trials[0].state.name == "RUNNING"


def test_release_gives_the_trial_to_the_next(here: dict[str, Any], study: Study) -> None:
    first = asked(here)
    run("trial", "release", "--reason", "node is going down", "--ticket", first["ticket"], **here)
    lost = run("trial", "report", "1", "--step", "1", "--ticket", first["ticket"], check=False, **here)
    assert lost.returncode == 11
    assert "node is going down" in lost.stderr
    assert code("trial", "tell", "1", "--ticket", first["ticket"], **here) == 11
    second = asked(here)
    assert (second["number"], second["params"]) == (first["number"], first["params"])
    assert "kept as trial 1" in run("trial", "tell", "2", "--ticket", first["ticket"], check=False, **here).stderr
    assert code("trial", "tell", "1", "--ticket", second["ticket"], **here) == 0


def test_a_late_result_that_is_told_again_is_late_again(here: dict[str, Any], study: Study) -> None:
    first = asked(here)
    run("trial", "release", "--ticket", first["ticket"], **here)
    second = asked(here)
    for _ in range(2):
        told = run("trial", "tell", "2", "--ticket", first["ticket"], check=False, **here)
        assert (told.returncode, "--debug" in told.stderr) == (11, False)
    assert [trial.values for trial in study.trials if trial.number != second["number"]] == [[2.0]]


def test_prune_is_an_exit_code(here: dict[str, Any], study: Study) -> None:
    for _ in range(6):
        trial = study.ask()
        trial.report(0.0, 5)
        study.tell(trial, 0.0)
    ticket = asked(here)["ticket"]
    assert code("trial", "report", "9", "--step", "5", "--should-prune", "--ticket", ticket, **here) == 10
    result = run("trial", "should-prune", "--ticket", ticket, check=False, **here)
    assert (result.returncode, result.stdout) == (10, "")
    assert "MedianPruner" in result.stderr
    assert (
        json.loads(run("trial", "should-prune", "--json", "--ticket", ticket, check=False, **here).stdout)["prune"]
        is True
    )


def test_a_stop_request_prunes(here: dict[str, Any], study: Study) -> None:
    ticket = asked(here)["ticket"]
    study.stop_trial(0, reason="too slow")
    result = run("trial", "should-prune", "--ticket", ticket, check=False, **here)
    assert result.returncode == 10
    assert "too slow" in result.stderr
    run("trial", "tell", "--state", "pruned", "--ticket", ticket, **here)
    assert study.state.trials[0].reason == "too slow"


@pytest.mark.parametrize("why", ["budget", "paused", "stopped"])
def test_no_work_is_an_exit_code(here: dict[str, Any], study: Study, why: str) -> None:
    if why == "budget":
        study.optimize(lambda _: 1.0)
    getattr(study, {"budget": "resume", "paused": "pause", "stopped": "stop_all"}[why])()
    result = run("trial", "ask", check=False, **here)
    assert (result.returncode, result.stdout) == (3, "")
    assert why in result.stderr


def test_a_lost_ticket_is_an_exit_code_and_a_result_is_kept(here: dict[str, Any], study: Study) -> None:
    ticket = asked(here)["ticket"]
    reclaim(study, 0)
    for words in (
        ["trial", "report", "1", "--step", "1"],
        ["trial", "renew"],
        ["trial", "should-prune"],
        ["trial", "release"],
    ):
        result = run(*words, "--ticket", ticket, check=False, **here)
        assert result.returncode == 11, words
        assert len(result.stderr.splitlines()) == 1
    told = run("trial", "tell", "0.5", "--ticket", ticket, check=False, **here)
    assert told.returncode == 11
    late = next(trial for trial in study.state.trials if trial.late_of == 0)
    assert f"kept as trial {late.number}" in told.stderr
    assert late.values == (0.5,)


def test_a_result_that_finds_the_store_closed_is_kept_and_sent_at_the_next_contact(
    here: dict[str, Any], study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    ticket = asked(here)["ticket"]
    (tmp_path / "store").rename(tmp_path / "away")
    assert code("trial", "report", "1", "--step", "1", "--ticket", ticket, **here) == 78
    assert code("trial", "tell", "nan", "--ticket", ticket, **here) == 2
    told = run("trial", "tell", "0.25", "--ticket", ticket, check=False, **here)
    assert told.returncode == 78
    assert len(told.stderr.splitlines()) == 1
    assert "hopaas-p2p admin spool send" in told.stderr
    listed = json.loads(run("admin", "spool", "list", "--json").stdout)
    assert [(row["study"], row["trials"], row["store"]) for row in listed] == [("s", [0], study.storage.url)]
    assert run("admin", "spool", "send", check=False).returncode == 78
    (tmp_path / "away").rename(tmp_path / "store")
    assert run("admin", "spool", "send").stderr == "Sent 1 file.\n"
    assert study.trials[0].values == [0.25]
    assert len(study.state.peers) == 1
    assert run("trial", "tell", "0.25", "--ticket", ticket, check=False, **here).returncode == 1, "it is finished"


def test_a_study_without_a_space_takes_one_at_ask(tmp_path: Path) -> None:
    study = hopaas_p2p.open_study(str(tmp_path / "store"), "free")
    there = {"cwd": tmp_path, "HOPAAS_STORE": "./store", "HOPAAS_STUDY": "free"}
    refused = run("trial", "ask", check=False, **there)
    assert refused.returncode == 2
    assert "--space" in refused.stderr
    assert not study.state.trials
    assert asked(there, "--space", "x=float(0,1)")["params"].keys() == {"x"}
    study.close()


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_asking_starts_nothing_when_its_output_goes_nowhere(
    here: dict[str, Any], study: Study, unbuffered: str
) -> None:
    with Path("/dev/full").open("w") as full:
        env = environment(HOPAAS_STORE="./store", HOPAAS_STUDY="s", PYTHONUNBUFFERED=unbuffered)
        done = subprocess.run(
            [*CLI, "trial", "ask"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            cwd=here["cwd"],
            env=env,
        )
    assert (done.returncode, done.stderr) == (1, "hopaas-p2p: No space left on device\n")
    assert [trial.state.name for trial in study.state.trials] == ["WAITING"]


# --- the ticket itself -------------------------------------------------------------------------------------------


def test_a_ticket_is_text_and_comes_back() -> None:
    ticket = Ticket("file:///shared/campaign", "наука / 7", 12, "abc_-DEF", 3, "uuid")
    text = str(ticket)
    assert text.isascii()
    assert not set(text) & set(" '\"$`\\\n=")
    assert Ticket.parse(text) == ticket


@pytest.mark.parametrize("change", [lambda t: t[:-3], lambda t: t[4:], lambda t: t[:9] + "X" + t[10:], lambda _: ""])
def test_a_ticket_that_was_cut_or_changed_is_refused(change: Any) -> None:
    text = str(Ticket("file:///x", "s", 0, "o", 1, "u"))
    with pytest.raises(InvalidInput, match="not a whole ticket"):
        Ticket.parse(change(text))


def test_a_ticket_of_a_trial_that_cannot_be_is_refused() -> None:
    with pytest.raises(InvalidInput, match="not a whole ticket"):
        Ticket.parse(str(Ticket("file:///x", "s", -1, "o", 1, "u")))


@pytest.mark.parametrize("form", [[], ["--shell"]], ids=["plain", "for the shell"])
def test_all_that_ask_prints_is_taken_as_a_ticket(here: dict[str, Any], study: Study, form: list[str]) -> None:
    printed = run("trial", "ask", *form, **here).stdout
    run("trial", "tell", "1", "--ticket", printed, **here)
    assert study.trials[0].values == [1.0]


def test_a_ticket_is_granted_its_own_silence_and_every_command_is_a_sign_of_life(
    here: dict[str, Any], study: Study
) -> None:
    ticket = Ticket.parse(asked(here, "--ttl", "90")["ticket"])
    assert ttl_of(study.state, ticket.owner) == 90.0
    store = study.storage.peer.store
    beats = [store.beats([ticket.owner])]
    for words in (["trial", "renew"], ["trial", "report", "1", "--step", "1"], ["trial", "should-prune"]):
        run(*words, "--ticket", str(ticket), **here)
        beats.append(store.beats([ticket.owner]))
    assert len({beat[ticket.owner] for beat in beats}) == 4


def test_commands_of_a_ticket_are_no_peers_of_their_own(here: dict[str, Any], study: Study) -> None:
    ticket = asked(here)["ticket"]
    for step in range(3):
        run("trial", "report", "1", "--step", str(step), "--ticket", ticket, **here)
    assert len(study.state.peers) == 1


def test_a_store_that_has_another_path_here(here: dict[str, Any], study: Study, tmp_path: Path) -> None:
    ticket = Ticket.parse(asked(here)["ticket"])
    moved = str(ticket._replace(store="file:///not/here"))
    assert code("trial", "tell", "1", "--ticket", moved, **here) == 78
    assert code("trial", "tell", "1", "--ticket", moved, "--store", str(tmp_path / "store"), **here) == 0


def test_a_ticket_of_this_process(study: Study) -> None:
    trial = study.ask()
    trial.report(1.0, 1)
    ticket = ticket_of(study, trial.number)
    with carry(ticket) as carried:
        carried.do("report", value=2.0, step=2)
        assert carried.do("should-prune")["prune"] is False
        carried.do("tell", values=[3.0])
        with pytest.raises(NotYourTrial):
            carried.do("tell", values=[4.0])
        with pytest.raises(NotYourTrial):
            carried.do("renew")
    assert study.trials[0].intermediate_values == {1: 1.0, 2: 2.0}
    with pytest.raises(NotYourTrial):
        ticket_of(study, trial.number)


def test_a_ticket_of_a_study_that_was_made_anew(study: Study) -> None:
    ticket = ticket_of(study, study.ask().number)
    study.storage.delete_study(study.study_id)
    again = hopaas_p2p.open_study(study.storage.url, "s")
    again.tell(again.ask(), 1.0)
    with pytest.raises(NoSuchStudy, match="another one has its name"), carry(ticket) as carried:
        carried.do("tell", values=[1.0])
    assert len(again.trials) == 1
    again.close()
