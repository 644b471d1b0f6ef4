"""What somebody reads who has made a common mistake: it names the cause, and what to do."""

from __future__ import annotations

import json
import re
import secrets
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

import hopaas_p2p
from hopaas_p2p.cli import main
from hopaas_p2p.core.admission import Wait
from hopaas_p2p.core.leases import FailureDetector
from hopaas_p2p.core.records import Categorical, Float, Int, TrialCreate
from hopaas_p2p.errors import InvalidInput, StoreUnreachable
from hopaas_p2p.peer.jobs import Jobs
from hopaas_p2p.ports.local import LocalPeer
from hopaas_p2p.ports.verbs import answered
from hopaas_p2p.spec.space import parse_params, parse_space
from hopaas_p2p.storage import Storage
from hopaas_p2p.storage.refusals import no_work
from hopaas_p2p.study import StudyPolicy
from tests.support.scribe import Scribe

SPACE = {"x": Float(0.0, 1.0)}
LOG = {"lr": Float(1e-5, 1e-2, log=True)}


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run a command on a new store: its exit code, and all that it printed."""

    def command(*words: str) -> tuple[int, str]:
        code = main.run([*words[:2], "--store", str(tmp_path / "store"), *words[2:]])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return command


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("direction", "did you mean 'directions'?"),
        ("storage", "did you mean 'store'?"),
        ("max_failures", r"give it as policy=StudyPolicy\(max_failures=…\)"),
        ("n_trials", "it takes store, name, space, .*budget"),
    ],
)
def test_an_unknown_argument_of_open_study_has_a_hint(word: str, hint: str) -> None:
    given: dict[str, Any] = {word: 1}
    with pytest.raises(TypeError, match=rf"open_study\(\) has no argument '{word}'; {hint}"):
        hopaas_p2p.open_study("memory://a", "s", **given)


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("x=log(0.1,1,priro=0.3)", "there is no priro=…; did you mean 'prior'?"),
        ("x=float(0,1,stepp=0.1)", "there is no stepp=…; did you mean 'step'?"),
        ("x=float(0.1,1,log=true)", "there is no log=…; write log alone"),
        ("x=int(1,9,seed=3)", "only step, prior and confidence take a value"),
        ("x=int(1,2.5)", "whole numbers, not 2.5$"),
    ],
)
def test_a_misspelt_word_of_a_space_has_a_hint(spec: str, hint: str) -> None:
    with pytest.raises(InvalidInput, match=hint.replace("?", r"\?")):
        parse_space([spec])


def test_a_confidence_without_a_prior_is_refused() -> None:
    with pytest.raises(InvalidInput, match="'x': confidence needs a prior"):
        hopaas_p2p.open_study("memory://c", "s", space=parse_space(["x=float(0,1,confidence=high)"]))


def test_a_grid_without_an_end_is_refused_before_the_study_is_created(run: Callable[..., tuple[int, str]]) -> None:
    code, said = run("study", "create", "g", "--sampler", "grid", "--space", "x=float(0,1)", "--space", "n=int(1,3)")
    assert code == 2
    assert "the grid sampler tries every value, so 'x' needs a step, as in x=float(0,1,step=0.1)" in said
    assert "No studies yet" in run("study", "list")[1]
    study = hopaas_p2p.open_study(f"memory://{secrets.token_hex(8)}", "s", space={**SPACE, "n": Int(1, 3)})
    with pytest.raises(InvalidInput, match="'x' needs a step"):
        study.search_with(sampler=optuna.samplers.BruteForceSampler())
    study.sampler = optuna.samplers.BruteForceSampler()
    with pytest.raises(InvalidInput, match="'x' needs a step"):
        study.ask()
    study.close()
    with pytest.raises(InvalidInput, match=r"as in lr=float\(1e-05,0\.01,step=0\.001\)"):  # without log
        hopaas_p2p.open_study("memory://g", "s", space=LOG, sampler=optuna.samplers.BruteForceSampler())


def test_a_grid_takes_a_real_parameter_of_one_value() -> None:
    space = {"x": Float(2.0, 2.0), "n": Int(1, 3)}
    at = f"memory://{secrets.token_hex(8)}"
    study = hopaas_p2p.open_study(at, "s", space=space, sampler=optuna.samplers.BruteForceSampler())
    study.optimize(lambda trial: trial.params["n"])
    assert sorted(tuple(trial.params.values()) for trial in study.trials) == [(2.0, 1), (2.0, 2), (2.0, 3)]
    study.close()


def test_a_pattern_that_matches_nothing_does_not_deny_the_studies(run: Callable[..., tuple[int, str]]) -> None:
    run("study", "create", "digits")
    for names in ([], ["--names"]):
        assert "No study matches 'mnist*'." in run("study", "list", "mnist*", *names)[1]


def test_studies_that_cannot_be_read_are_not_denied(
    run: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run("study", "create", "digits")
    run("study", "create", "older")
    monkeypatch.setattr(Storage, "_frozen_study", lambda *_: None)  # as of a damaged log
    said = run("study", "list", "--limit", "1")[1]
    assert "No studies yet" not in said
    assert "None of the newest studies (1) can be read." in said
    assert "Older studies not shown: 1" in said


@pytest.mark.parametrize("words", [("worker",), ("run",), ("trial", "ask"), ("submit", "slurm"), ("join",)])
def test_the_search_is_the_studys(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    for option, word in (("--sampler", "random"), ("--pruner", "none")):
        assert main.run([*words, option, word, *([] if words == ("trial", "ask") else ["--", "true"])]) == 2
        said = capsys.readouterr().err
        assert f"'{option}' is not an option here. To set it: hopaas-p2p study set STUDY {option} NAME" in said


def test_a_number_may_begin_or_end_with_its_point() -> None:
    assert parse_space(["x=float(-.5,6.,step=.1,prior=.2)", "c=cat(.5,5.,v.5)"]) == {
        "x": Float(-0.5, 6.0, step=0.1, prior=0.2),
        "c": Categorical((0.5, 5.0, "v.5")),
    }
    assert parse_params(["x=.5", "c=-.5e1"], {}) == {"x": 0.5, "c": -5.0}
    assert parse_params(["c=.5"], {"c": Categorical((".5",))}) == {"c": ".5"}


def test_trials_are_listed_by_an_objectives_name(run: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    study = hopaas_p2p.open_study(str(tmp_path / "store"), "s", space=SPACE, directions=["minimize", "maximize"])
    study.set_metric_names(["loss", "speed"])
    for values in ([1.0, 5.0], [2.0, 9.0], [3.0, 7.0]):
        study.tell(study.ask(), values)
    study.close()
    _, listed = run("trial", "list", "s", "--sort", "speed")
    assert [row.split()[0] for row in listed.splitlines()[1:]] == ["1", "2", "0"]
    code, said = run("trial", "list", "s", "--sort", "sped")
    assert code == 2
    assert "'sped' is not an order. The orders are loss, speed, number, value, start, seconds." in said


def test_an_objectives_name_writes_no_line_of_its_own(run: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    study = hopaas_p2p.open_study(str(tmp_path / "store"), "s", space=SPACE)
    study.set_metric_names(["loss\nhopaas-p2p: all is well"])
    study.close()
    assert run("trial", "list", "s", "--sort", "sped")[1].count("\n") == 1


def test_a_study_given_to_a_worker_as_a_word_has_a_hint(run: Callable[..., tuple[int, str]]) -> None:
    for words in (("worker", "digits", "--"), ("worker", "digits", "--", "echo", "1"), ("worker", "digits")):
        code = main.run(list(words))
        assert code == 2
    assert "Name the study with an option: --study digits" in run("run", "digits", "--", "echo")[1]


def test_a_command_without_dashes_is_not_taken_for_a_study(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["worker", "python", "train.py"], ["submit"]):
        assert main.run(words) == 2
        assert "No command given. Put it after --, as in: -- python train.py" in capsys.readouterr().err


def test_a_study_with_too_many_failures_names_the_command_that_continues_it() -> None:
    policy = StudyPolicy(max_failures=1)
    study = hopaas_p2p.open_study(f"memory://{secrets.token_hex(8)}", "s", space=SPACE, policy=policy)
    study.tell(study.ask(), state="fail")
    with pytest.raises(
        hopaas_p2p.errors.NoWork, match=r"--study s --store \S+, then .*: hopaas-p2p study resume s --store \S+\."
    ):
        study.ask()
    study.close()


def test_a_program_over_http_reads_no_names_of_python() -> None:
    storage = hopaas_p2p.open_storage(f"memory://{secrets.token_hex(8)}")
    peer = LocalPeer(storage, actions=True)

    def error(verb: str, body: bytes) -> str:
        return str(answered(body, lambda said: peer.answer(verb, said))["error"])

    assert error("ask", b"{}") == "the request has no 'study'"
    for verb, said, why in [
        ("trials", {"study": "s", "stat": 1}, "trials takes study, state, order, limit, offset, not 'stat'"),
        ("trials", {"study": "s", "limit": "all"}, "limit must be a whole number, got 'all'"),
        ("ask", {"study": ["s"]}, "study must be a string, got ['s']"),
        ("trial", {"study": "s", "trial": None}, "the request has no 'trial'"),
        ("report", {"study": "s", "trial": 0, "value": "low", "step": 1}, "value must be a number, got 'low'"),
        ("report", {"study": "s", "trial": 0, "value": 0.5, "step": 1.5}, "step must be a whole number, got 1.5"),
        ("log", {"study": "s", "trial": 0, "metrics": 3}, "metrics must be an object of values by name, got 3"),
    ]:
        assert error(verb, json.dumps(said).encode()) == why
    assert error("ask", b"study=s").startswith("the request is not JSON")
    storage.close()


@pytest.mark.parametrize("step", [7, 7.0, "7", " 7\n", "007", "+7"])
def test_a_number_may_be_written_as_json_or_a_shell_writes_it(step: object) -> None:
    said = {"trial": step, "step": step, "value": step, "study": "7"}
    reply = answered(json.dumps(said).encode(), lambda checked: {"checked": checked})
    assert reply == {"ok": True, "checked": {"trial": 7, "step": 7, "value": 7.0, "study": "7"}}


@pytest.mark.parametrize(("written", "value"), [(".5", 0.5), (" 0.5", 0.5), ("5.", 5.0), ("+inf", float("inf"))])
def test_a_value_may_be_written_as_bc_or_awk_writes_it(written: str, value: float) -> None:
    reply = answered(json.dumps({"value": written}).encode(), lambda checked: checked)
    assert reply == {"ok": True, "value": value}


def test_ctrl_c_while_waiting_shows_no_other_error(monkeypatch: pytest.MonkeyPatch) -> None:
    store = f"memory://{secrets.token_hex(8)}"
    study, other = (hopaas_p2p.open_study(store, "s", space=SPACE, budget=1) for _ in range(2))
    trial = other.ask()

    def interrupted(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hopaas_p2p.study.study.time.sleep", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        study.optimize(lambda _: 1.0)
    assert caught.value.__context__ is None
    monkeypatch.undo()
    other.tell(trial, 1.0)
    other.close()
    study.close()


def test_jobs_that_meet_the_same_trouble_log_it_once(caplog: pytest.LogCaptureFixture) -> None:
    class Owner:
        pass

    ran = threading.Semaphore(0)

    def denied(_owner: Owner) -> float:
        ran.release()
        raise StoreUnreachable("the same trouble")

    owner = Owner()
    jobs = Jobs(owner, allowed=True)
    made = [jobs.add(denied), jobs.add(denied)]
    for job in made:
        jobs.wake(job)
        assert ran.acquire(timeout=10.0)
    jobs.stop(within=10.0)
    assert caplog.text.count("the same trouble") == 1


def waited(owners: str, *, silent: float) -> str:
    """What a peer says that waits for a trial of each of these owners, which all have been silent for so long."""
    campaign = Scribe()
    for owner in owners:
        campaign.say(owner, TrialCreate())
    heard = FailureDetector()
    heard.look(dict.fromkeys(owners, "1"), owners, 0.0)
    heard.look(dict.fromkeys(owners, "2"), owners, 1.0)
    waits = Wait("budget", tuple(range(len(owners))), silent + 61.0)
    return str(no_work(campaign.state, waits, heard, silent + 1.0, "", ""))


def test_a_peer_that_waits_for_hundreds_of_trials_names_some_of_them() -> None:
    text = waited("a" * 300, silent=130.0)
    seen = ", last heard of 2 min 10 s ago"
    assert f"still running: trial 0{seen}, trial 1{seen}, trial 2{seen} and 297 more." in text
    assert "If a peer has died, that will be known within 1 min." in text
    assert "If you know that it has died: hopaas-p2p trial requeue 0 1 2 --study study" in text


def test_the_command_for_a_dead_peers_trials_names_those_of_one_peer() -> None:
    """It takes trials from live peers, too."""
    text = waited("aba", silent=130.0)
    assert re.search(r"that the first one has died: .* requeue 0 2 --study study\.$", text)


def test_no_trial_of_a_peer_that_was_just_heard_of_is_offered_to_others() -> None:
    text = waited("a", silent=3.0)
    assert "still running: trial 0, last heard of 3 s ago. If a peer has died, that will be known within 1 min." in text
    assert "requeue" not in text


def test_a_peer_that_waits_names_the_owner_of_the_trial() -> None:
    url = f"memory://{secrets.token_hex(8)}"
    first, second = [hopaas_p2p.open_study(url, "s", space=SPACE, budget=1) for _ in range(2)]
    held = first.ask()
    with pytest.raises(hopaas_p2p.errors.NoWork, match=r"still running: trial 0 of \S+ on \S+.* known within"):
        second.ask()
    assert held.number == 0
    for study in (first, second):
        study.close()
