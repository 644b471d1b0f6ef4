"""The demo as its user sees it: real processes, a real kill, plain lines without a terminal."""

from __future__ import annotations

import io
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from rich.console import Console

import hopaas_p2p
from dashboard_app.options import DashboardOptions
from hopaas_p2p.cli.main import run as run_command
from hopaas_p2p.core.apply import apply
from hopaas_p2p.core.records import (
    Commit,
    PeerJoin,
    Policy,
    StudyDefine,
    TrialCreate,
    TrialFinish,
    TrialReclaim,
    TrialState,
)
from hopaas_p2p.core.state import State
from hopaas_p2p.demo.progress import EventReader
from hopaas_p2p.demo.run import dashboard, further, program
from hopaas_p2p.demo.screen import Screen, below
from tests.support.processes import until

DEMO = [sys.executable, "-m", "hopaas_p2p.cli.main", "demo"]
PLAIN = {**os.environ, "NO_COLOR": "1", "COLUMNS": "100"}


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*DEMO, *arguments], capture_output=True, text=True, timeout=240, env=PLAIN)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """One run with a kill, which the tests of this module look at from several sides."""
    folder = tmp_path_factory.mktemp("demo") / "store"
    return folder, _run("--store", str(folder), "--trials", "15", "--timeout", "230")


def test_a_killed_peers_trial_comes_back_and_the_budget_is_exact(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, done = finished

    assert done.returncode == 0, done.stdout + done.stderr
    killed = re.search(r"peer (\w) KILLED \(SIGKILL, pid \d+\) in epoch \d+ of #(\d+)", done.stdout)
    assert killed is not None
    study = hopaas_p2p.open_study(str(folder), "digits", create=False)
    state = study.state
    study.close()
    lost = state.trials[int(killed[2])]
    assert lost.state is TrialState.FAIL
    assert lost.history[-1].why == "its owner fell silent"
    assert state.peers[lost.history[-1].owner]["site"] == f"peer {killed[1]}"
    assert lost.retried_by is not None
    retry = state.trials[lost.retried_by]
    assert retry.params == lost.params
    assert retry.state in (TrialState.COMPLETE, TrialState.PRUNED)
    assert retry.owner != lost.history[-1].owner
    assert state.counts[TrialState.COMPLETE] + state.counts[TrialState.PRUNED] == 15


def test_the_end_tells_results_savings_and_where_to_look_further(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, done = finished

    assert re.search(r"accuracy 0\.\d{4} in five-fold cross-validation", done.stdout)
    accuracy = re.search(r"accuracy (0\.\d{4}) on 360 digits that no trial has seen", done.stdout)
    assert accuracy is not None
    assert float(accuracy[1]) > 0.85
    assert re.search(r"Pruning saved about \d+ of \d+ epochs", done.stdout)
    assert "This is an estimate" in done.stdout
    assert f"Report  {folder / 'digits.html'}" in done.stdout
    report = (folder / "digits.html").read_text()
    assert ": taken over, " in report
    assert "\x1b" not in done.stdout


def test_the_commands_at_the_end_work_as_they_are_printed(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    """Also where no environment is active, as after `make demo`."""
    folder, done = finished

    killed = re.search(r"epoch \d+ of #(\d+)", done.stdout)
    assert killed is not None
    for command in further(str(folder), "digits", int(killed[1])):
        assert command in done.stdout
        ran = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
        assert ran.returncode == 0, command + ran.stdout + ran.stderr
        assert ran.stdout or ran.stderr


def test_the_command_for_the_browser_serves_the_store(
    finished: tuple[Path, subprocess.CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, done = finished
    command = dashboard(str(folder))
    assert command in done.stdout
    served: list[DashboardOptions] = []
    monkeypatch.setattr("dashboard_app.server.serve", served.append)

    assert run_command(shlex.split(command)[1:]) == 0

    (told,) = served
    assert (told.store, told.open_browser) == (str(folder), True)


def test_a_program_is_called_by_its_name_where_the_shell_finds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    beside = Path(sys.executable).with_name("hopaas-p2p")
    monkeypatch.setenv("PATH", str(beside.parent))
    assert program() == "hopaas-p2p"
    monkeypatch.setenv("PATH", "/nowhere")
    assert program() == str(beside.relative_to(Path.cwd()) if beside.is_relative_to(Path.cwd()) else beside)


def test_a_second_demo_in_the_same_store_is_a_study_of_its_own(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, _ = finished

    done = _run("--store", str(folder), "--peers", "1", "--trials", "1")

    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in folder.glob("*.html")} == {"digits.html", "digits-2.html"}


def test_when_time_is_up_no_more_trials_are_given_out(tmp_path: Path) -> None:
    done = _run("--store", str(tmp_path / "store"), "--trials", "100000", "--timeout", "10", "--peers", "1")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "time is up" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--peers", "0"), 2, "0 is not in the range"),
        (("--trials", "-1"), 2, "-1 is not in the range"),
        (("--store", "/dev/null"), 78, "is a file"),
        (("--store", "ftp://x"), 78, "no store has the scheme"),
        (("--store", "memory://x"), 78, "exists in one process"),
    ],
)
def test_a_demo_that_cannot_be_says_why_in_one_line(arguments: tuple[str, ...], code: int, said: str) -> None:
    done = _run(*arguments)

    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_peer_that_fails_ends_the_demo_with_its_last_words(tmp_path: Path) -> None:
    """A module that cannot be imported stands for whatever may be wrong in a peer's environment."""
    (tmp_path / "optuna.py").write_text("raise SystemExit('this optuna is broken')")
    code = (
        "import sys, os; sys.path.remove('') if '' in sys.path else None\n"
        "from hopaas_p2p.cli.main import run\n"
        "import hopaas_p2p.demo.run\n"
        f"os.environ['PYTHONPATH'] = {str(tmp_path)!r}\n"
        f"sys.exit(run(['demo', '--store', {str(tmp_path / 'store')!r}]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=PLAIN)

    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"peer \w ended with exit code 1: this optuna is broken", done.stderr)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_no_process_and_no_running_trial(tmp_path: Path, sent: signal.Signals) -> None:
    store = tmp_path / "store"
    demo = subprocess.Popen(
        [*DEMO, "--store", str(store), "--no-kill"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=PLAIN,
    )
    assert demo.stdout is not None
    joined = 0
    for line in demo.stdout:
        joined += " joined" in line
        if joined == 3:
            break
    peers = psutil.Process(demo.pid).children(recursive=True)
    assert len(peers) == 3

    demo.send_signal(sent)
    said, _ = demo.communicate(timeout=60)

    assert demo.returncode == 130, said
    assert "Interrupted" in said
    assert not any(peer.is_running() for peer in peers)
    study = hopaas_p2p.open_study(str(store), "digits", create=False)
    assert study.state.counts[TrialState.RUNNING] == 0
    study.close()


def test_peers_end_when_the_demo_itself_is_killed(tmp_path: Path) -> None:
    demo = subprocess.Popen(
        [*DEMO, "--store", str(tmp_path / "store"), "--trials", "100000", "--no-kill"],
        stdout=subprocess.PIPE,
        text=True,
        env=PLAIN,
    )
    assert demo.stdout is not None
    while " joined" not in demo.stdout.readline():
        pass
    peers = psutil.Process(demo.pid).children(recursive=True)

    demo.kill()
    demo.wait()
    demo.stdout.close()

    def gone(peer: psutil.Process) -> bool:
        return not peer.is_running() or peer.status() == psutil.STATUS_ZOMBIE

    until(lambda: all(map(gone, peers)), 60, what="a peer outlived the demo")


# --- the story and the screen, without processes -------------------------------------------------------------------


def _state() -> State:
    """Peer A (pid 11) runs #0 and dies; peer B (pid 22) takes it over as #1 and completes it."""
    state = State()
    define = StudyDefine("digits", ("maximize",), Policy(budget=10))
    commits = [
        Commit("a", 1, "a", 0, (define, PeerJoin({"pid": "11"}), TrialCreate())),
        Commit("b", 1, "b", 1, (PeerJoin({"pid": "22"}), TrialReclaim(0, 1), TrialCreate(prefer_waiting=True))),
        Commit("b", 2, "b", 2, (TrialFinish(1, 1, TrialState.COMPLETE, (0.75,)),)),
    ]
    for lsn, commit in enumerate(commits, start=1):
        apply(state, lsn, commit)
    return state


def test_the_story_tells_who_was_taken_over_by_whom_and_only_once() -> None:
    reader = EventReader({11: "A", 22: "B"})
    state = _state()

    told = [text for text, _ in reader.new_events(state)]

    assert told == [
        "peer A joined, pid 11",
        "peer B joined, pid 22",
        "#0 taken from peer A, silent for 120 s; it is waiting again as #1",
        "peer B runs #1, the parameters of #0 once more",
        "#1, the retry of #0, is complete: 0.7500",
        "#1 by peer B is the best so far: 0.7500",
    ]
    assert reader.new_events(state) == []


PEERS = [("A", 11, "killed"), ("B", 22, "running")]


def test_the_live_screen_fits_a_terminal_of_80_by_24() -> None:
    console = Console(file=io.StringIO(), width=80, height=24, force_terminal=True, color_system=None)
    peers = [*PEERS, *((name, 30 + at, "running") for at, name in enumerate("CDEFGHIJKLMNOP"))]

    shown = below(_state(), peers, elapsed=12.0, epochs=30)
    lines = console.render_lines(shown, console.options.update(height=None))

    assert len(lines) < 24
    text = "\n".join("".join(segment.text for segment in one) for one in lines)
    assert "killed" in text
    assert "starting" in text
    assert "1/10" in text


def test_on_a_terminal_events_are_lines_above_peers_and_progress() -> None:
    out = io.StringIO()
    with Screen(Console(file=out, width=80, height=24, force_terminal=True), title="demo", epochs=30) as screen:
        screen.show(_state(), PEERS, elapsed=12.0)
        screen.say(12.5, "something", "good")

    assert "something" in out.getvalue()
    assert "killed" in out.getvalue()


def test_without_a_terminal_there_are_plain_lines() -> None:
    out = io.StringIO()
    with Screen(Console(file=out, width=40), title="demo [bold]", epochs=30) as screen:
        screen.say(1.25, "something " * 8)
        screen.show(_state(), PEERS, elapsed=12.0)

    assert out.getvalue().splitlines() == [
        "demo [bold]",
        "  1.2 s  " + ("something " * 8),
        " 12.0 s  1/10 trials: 1 complete, 0 pruned, 1 failed, 0 running; best 0.7500; pruning saved about 0 epochs",
    ]
