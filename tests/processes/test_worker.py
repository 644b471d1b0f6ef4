"""The worker and the commands it runs, as real processes on a directory store."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NoReturn

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend

import hopaas_p2p
from hopaas_p2p.cli import main
from hopaas_p2p.core.records import TrialReclaim
from hopaas_p2p.errors import NO_THREAD, HopaasError, StoreUnreachable
from hopaas_p2p.files.checkpoints import unneeded
from hopaas_p2p.ports import child
from hopaas_p2p.ports import socket as trial_socket
from hopaas_p2p.ports import worker as loop
from hopaas_p2p.runtime.interrupts import PREEMPTIONS
from hopaas_p2p.storage.handle import StudyHandle
from hopaas_p2p.study import Study
from tests.support.processes import CLI, alive, campaign, cli, patient, script, start, states, until

WORKER = ["worker", "--store", "store", "--study", "s"]
REPORTING = """
import sys, time
from hopaas_p2p.ports.client import Trial
trial = Trial()
"""


def work(where: Path, command: list[str], *options: str, code: int = 0, **env: str) -> str:
    done = cli(*WORKER, *options, "--", *command, cwd=where, check=False, **env)
    assert done.returncode == code, done.stderr
    return done.stderr


def running(study: Study, number: int = 0) -> bool:
    trials = study.state.trials
    return len(trials) > number and trials[number].state.name == "RUNNING"


# --- what a command is given, and what it gives back -----------------------------------------------------------------


@pytest.mark.path
def test_a_command_runs_once_a_trial_until_the_budget_is_used(study: Study, tmp_path: Path) -> None:
    command = script(tmp_path, "import sys, json; print('epoch 1'); print(json.dumps({'value': float(sys.argv[1])}))")

    said = work(tmp_path, [*command, "{lr}", "--depth={depth}"])

    assert states(study) == ["COMPLETE"] * 3
    assert [trial.values[0] for trial in study.trials] == [trial.params["lr"] for trial in study.trials]
    log = tmp_path / "hopaas-logs" / "s" / "0.log"
    assert log.read_text().startswith("epoch 1\n")
    assert "hopaas-logs/s/0.log" in said


def test_the_parameters_are_in_the_environment_and_the_token_is_not(study: Study, tmp_path: Path) -> None:
    command = script(
        tmp_path,
        """
        import json, os
        params = json.loads(os.environ["HOPAAS_PARAMS"])
        assert "HOPAAS_TOKEN" not in os.environ
        assert int(os.environ["HOPAAS_TRIAL"]) in (0, 1, 2)
        assert os.environ["HOPAAS_SEED"] == "0"
        assert "HOPAAS_CHECKPOINT" not in os.environ
        print(json.dumps({"value": params["lr"] * params["depth"]}))
        """,
    )

    work(tmp_path, command, HOPAAS_TOKEN="secret-of-mine")

    assert states(study) == ["COMPLETE"] * 3


def test_a_result_may_come_in_a_long_line(study: Study, tmp_path: Path) -> None:
    command = script(tmp_path, "import json; print(json.dumps({'history': [0.5] * 100_000, 'value': 0.25}))")

    work(tmp_path, command, "--max-trials", "1")

    assert [trial.value for trial in study.trials] == [0.25]


def test_several_values_are_told_as_a_list(tmp_path: Path) -> None:
    study = campaign(tmp_path, directions=["minimize", "maximize"], budget=1)

    work(tmp_path, ["echo", '{{"values": [1, 2.5]}}'])

    assert study.trials[0].values == [1.0, 2.5]
    study.close()


def test_a_command_without_a_value_fails_with_the_reason(study: Study, tmp_path: Path) -> None:
    work(tmp_path, ["echo", "all done"], "--max-trials", "1", code=1)

    assert states(study) == ["FAIL"]
    assert "gave no value but 'all done': print" in (study.state.trials[0].reason or "")


def test_a_command_that_breaks_fails_with_its_last_words(study: Study, tmp_path: Path) -> None:
    command = script(tmp_path, "raise ValueError('the loss is not a number')")

    said = work(tmp_path, command, "--max-trials", "1", code=1)

    reason = study.state.trials[0].reason or ""
    assert reason.startswith("the command ended with 1")
    assert reason.endswith("ValueError: the loss is not a number")
    assert ": the command ended with 1: ValueError: the loss is not a number" in said
    assert "the loss is not a number" in (tmp_path / "hopaas-logs" / "s" / "0.log").read_text()


def test_a_command_that_is_killed_says_by_what(study: Study, tmp_path: Path) -> None:
    work(tmp_path, ["sh", "-c", "kill -9 $$"], "--max-trials", "1", code=1)

    assert (study.state.trials[0].reason or "").startswith(
        "the command was ended by SIGKILL; did it run out of memory?"
    )


def test_a_command_learns_how_to_print_two_values(tmp_path: Path) -> None:
    space, directions = {"x": hopaas_p2p.Float(0, 1)}, ["minimize", "maximize"]
    study = hopaas_p2p.open_study(tmp_path / "store", "s", directions=directions, space=space)
    for printed in ("0.5", '{{"value": 0.5}}'):
        said = work(tmp_path, ["echo", printed], "--max-trials", "1", code=1)
        assert 'print {"value": [0.5, 0.5]} as the last line' in said
    work(tmp_path, ["echo", '{{"value": [0.5, 0.5]}}'], "--max-trials", "1")
    assert study.trials[-1].values == [0.5, 0.5]
    study.close()


def test_a_command_without_dashes_before_it_is_told_of_them(tmp_path: Path) -> None:
    for words in (("python", "train.py"), ("python", "train.py", "--lr", "{lr}"), ()):
        done = cli("worker", *words, cwd=tmp_path, check=False, HOPAAS_STORE="store", HOPAAS_STUDY="s")
        assert (done.returncode, "after --, as in: -- python train.py" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("printed", "reason"),
    [
        ('{{"value": NaN}}', "a value must be a number, got NaN"),
        ('{{"value": "high"}}', "a value must be a number, got 'high'"),
        ('{{"value": true}}', "a value must be a number, got 'true'"),
        ('{{"values": [1, 2]}}', "1 value expected, got 2"),
    ],
)
def test_a_value_that_is_none_fails_the_trial(study: Study, tmp_path: Path, printed: str, reason: str) -> None:
    work(tmp_path, ["echo", printed], "--max-trials", "1", code=1)

    assert states(study) == ["FAIL"]
    assert study.state.trials[0].reason == reason


def test_a_parameter_that_is_not_there_is_refused_before_anything_runs(study: Study, tmp_path: Path) -> None:
    said = work(tmp_path, ["echo", "{momentum}"], code=2)

    assert "no parameter 'momentum'; it has lr, depth" in said
    assert states(study) == []


def test_a_program_that_is_not_there_costs_no_trial(study: Study, tmp_path: Path) -> None:
    assert "there is no program './trian'" in work(tmp_path, ["./trian"], code=2)
    assert states(study) == []


def test_a_study_without_a_search_space_is_refused_with_the_cure(tmp_path: Path) -> None:
    study = campaign(tmp_path, space=None)

    assert "--space" in work(tmp_path, ["echo", "hi"], code=2)
    study.close()


# --- the socket ------------------------------------------------------------------------------------------------------


def test_the_client_says_what_is_missing_where_no_worker_started_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from hopaas_p2p.ports.client import Trial

    monkeypatch.delenv("HOPAAS_PARAMS", raising=False)
    with pytest.raises(RuntimeError, match="start it with: hopaas-p2p worker -- "):
        Trial()


def test_a_quiet_worker_prints_no_progress(study: Study, tmp_path: Path) -> None:
    assert work(tmp_path, ["echo", '{{"value": 1}}'], "--quiet", "--parallel", "2") == ""


def test_a_quiet_worker_that_fails_says_why(study: Study, tmp_path: Path) -> None:
    said = work(tmp_path, ["sh", "-c", "echo no such file >&2; exit 1"], "--quiet", "--max-trials", "2", code=1)

    assert said.startswith("trial 1: FAIL")
    assert said.count("\n") == 1
    assert "no such file" in said


def test_a_command_of_a_replicate_finds_its_seed(tmp_path: Path) -> None:
    with contextlib.closing(campaign(tmp_path, replicates=3)) as study:
        work(tmp_path, ["sh", "-c", 'echo "{{\\"value\\": $HOPAAS_SEED}}"'])

        assert [trial.value for trial in study.trials] == [0.0, 1.0, 2.0]


def test_the_client_reports_and_tells(study: Study, tmp_path: Path) -> None:
    command = script(
        tmp_path,
        REPORTING
        + """
        for epoch in range(3):
            trial.report(1.0 / (epoch + 1), epoch)
            trial.log(epoch, auc=epoch / 4)
        try:
            trial.log(3, auc=0.75, name="alpha")
        except RuntimeError as error:
            print(error)
        trial.tell(trial.params["lr"])
        sys.exit(7)  # told is told
        """.replace("\n        ", "\n"),
    )

    work(tmp_path, command, "--max-trials", "1")

    assert study.trials[0].intermediate_values == {0: 1.0, 1: 0.5, 2: 1 / 3}
    assert study.state.trials[0].metrics == {"auc": {0: 0.0, 1: 0.25, 2: 0.5, 3: 0.75}}
    said = (tmp_path / "hopaas-logs" / "s" / "0.log").read_text()
    assert "step 3: name is 'alpha', which is not a number. The others are kept: auc" in said.splitlines()
    assert study.trials[0].value == study.trials[0].params["lr"]


def kept_output(study: Study, number: int, where: Path) -> str:
    """The output that the worker has kept with this trial."""
    (one,) = study.artifacts().list(number)
    assert (one.filename, one.mimetype) == ("output.log", "text/plain")
    return study.artifacts().get(one, where / "fetched").read_text()


def test_the_end_of_the_output_of_a_failed_command_is_a_file_of_its_trial(study: Study, tmp_path: Path) -> None:
    command = script(
        tmp_path,
        """
        import sys, time
        for line in range(20_000):
            print("epoch", line)
        sys.stdout.flush()
        time.sleep(1)  # the two streams are read by two threads
        sys.exit("no such file: data.npz")
        """,
    )

    work(tmp_path, command, "--max-trials", "1", code=1)

    text = kept_output(study, 0, tmp_path)
    assert 60_000 < len(text) <= 1 << 16
    assert text.startswith("epoch ")
    assert {"epoch 19999", "no such file: data.npz"} <= set(text.splitlines())


def test_output_is_kept_of_a_command_that_says_itself_that_it_failed_and_of_no_other(
    study: Study, tmp_path: Path
) -> None:
    command = script(
        tmp_path,
        REPORTING
        + """
        print("diverged at epoch 3", flush=True)
        ends = [{"state": "fail", "reason": "diverged"}, {"state": "pruned"}, {}]
        number = min(int(sys.argv[1]), 2)
        trial.tell(*([0.5] if number == 2 else []), **ends[number])
        """.replace("\n        ", "\n"),
    )

    work(tmp_path, [*command, "{trial}"])

    assert states(study) == ["FAIL", "PRUNED", "COMPLETE", "COMPLETE"][: len(states(study))]
    assert kept_output(study, 0, tmp_path).startswith("diverged at epoch 3")
    assert [one.trial for one in study.artifacts().list()] == [0]


def test_no_output_is_kept_if_nobody_wants_that(study: Study, tmp_path: Path) -> None:
    command = script(tmp_path, "raise SystemExit('secret')")
    work(tmp_path, command, "--max-trials", "1", "--no-keep-output", code=1)
    assert study.artifacts().list() == []


def test_the_socket_is_private_and_gone_afterwards(study: Study, tmp_path: Path) -> None:
    command = script(
        tmp_path,
        """
        import json, os, stat
        path = os.environ["HOPAAS_TICKET"].removeprefix("unix:")
        mode = stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode)
        print(path)
        print(json.dumps({"value": mode}))
        """,
    )

    work(tmp_path, command, "--max-trials", "1", TMPDIR=str(tmp_path / ("long" * 30)))

    assert study.trials[0].value == 0o700
    path = (tmp_path / "hopaas-logs" / "s" / "0.log").read_text().splitlines()[0]
    assert len(path) < 108
    assert not Path(path).parent.exists()


def test_a_shell_script_reports_and_tells_through_the_socket(study: Study, tmp_path: Path) -> None:
    program = f"{sys.executable} -m hopaas_p2p.cli.main trial"
    said = ["report 0.5 --step 1", "should-prune", "renew", "tell 0.25"]
    lines = "\n".join(["set -e", *(f"{program} {words}" for words in said)])
    (tmp_path / "train.sh").write_text(lines)

    work(tmp_path, ["sh", "train.sh"], "--max-trials", "1")

    assert study.trials[0].intermediate_values == {1: 0.5}
    assert study.trials[0].value == 0.25


def test_a_wrong_request_is_answered_and_the_next_one_works(study: Study, tmp_path: Path) -> None:
    command = script(
        tmp_path,
        """
        import json, os, socket
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(os.environ["HOPAAS_TICKET"].removeprefix("unix:"))
        lines = connection.makefile("rw")
        def ask(text):
            print(text, file=lines, flush=True)
            reply = json.loads(lines.readline())
            print(reply)
            return reply
        assert not ask("what?")["ok"]
        assert not ask("[]")["ok"]
        assert not ask('{"do": "dance"}')["ok"]
        assert "'step'" in ask('{"do": "report", "value": 1}')["error"]
        assert ask('{"do": "report", "value": "x", "step": 1}')["code"] == 2
        assert ask('{"do": "tell", "values": [1, 2]}')["code"] == 2
        assert ask('{"do": "tell", "values": [1]}')["ok"]
        assert not ask('{"do": "tell", "values": [2]}')["ok"]
        """,
    )

    work(tmp_path, command, "--max-trials", "1")

    assert study.trials[0].value == 1.0


@pytest.mark.parametrize(
    "reply", [b"[]", b"5", b"{", b"\xff", b'{"code": []}', b'{"ok": false}', b"x" * (1 << 21), b""]
)
def test_a_reply_that_no_worker_sends_is_one_line(reply: bytes, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(1 << 16)
                connection.sendall(reply + b"\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(HopaasError) as failed:
            trial_socket.request(f"unix:{tmp_path / 's'}", "renew")
        thread.join()
    assert len(str(failed.value)) < 500


@pytest.mark.parametrize(
    "printed",
    ['"\\ud800"', "9" * 5000, '{"a": 1}', "[[1]]", "NaN", "[" * 100_000, "9" * 400, f'"{"z" * 5000}"', '["\\ud800"]'],
    ids=len,
)
def test_whatever_a_command_prints_ends_its_trial_in_one_short_line(study: Study, tmp_path: Path, printed: str) -> None:
    (tmp_path / "printed").write_text(f'{{"value": {printed}}}')
    said: list[str] = []
    worker = loop.Worker(study, ["cat", str(tmp_path / "printed")], max_trials=1, logs=tmp_path / "l", say=said.append)
    assert worker.work() == 1
    assert states(study) == ["FAIL"]
    assert len(said[-1].splitlines()) == 1
    assert len(said[-1]) < 500


def test_a_pruner_s_verdict_reaches_the_command(study: Study, tmp_path: Path) -> None:
    study.set_budget(20)
    for _ in range(5):  # the median pruner wants five to compare with
        trial = study.ask()
        trial.report(0.0, 1)
        study.tell(trial, 0.0)
    command = script(tmp_path, REPORTING + "sys.exit(0 if trial.report(9.0, 1) else 1)")

    work(tmp_path, command, "--max-trials", "1")

    assert states(study)[-1] == "PRUNED"
    assert study.trials[-1].value == 9.0


# --- stop requests ---------------------------------------------------------------------------------------------------

UNTIL_PRUNED = """
for step in range(3000):
    if trial.report(float(step), step):
        trial.tell(state="pruned")
        break
    time.sleep(0.01)
"""


def test_a_stop_request_reaches_the_command_and_is_seen_on_its_way(study: Study, tmp_path: Path) -> None:
    worker = start(*WORKER, "--max-trials", "1", "--", *script(tmp_path, REPORTING + UNTIL_PRUNED), cwd=tmp_path)
    until(lambda: running(study) and study.state.trials[0].reports, what="a report")

    study.stop_trial(0, reason="enough")
    trial = study.state.trials[0]
    assert "enough" in (trial.stop, trial.reason)  # a quick command has ended it by now
    until(lambda: study.state.trials[0].stopping or states(study) == ["PRUNED"], what="the acknowledgement")
    until(lambda: states(study) == ["PRUNED"], what="the end")
    assert study.state.trials[0].reason == "enough"

    assert worker.wait(patient(60)) == 0
    assert re.search(r"^trial 0: PRUNED after .* s: enough$", (tmp_path / "worker.err").read_text(), re.MULTILINE)


@pytest.mark.parametrize("reports", [True, False])
def test_a_command_that_ignores_a_stop_request_is_ended_after_the_grace(
    study: Study, tmp_path: Path, reports: bool
) -> None:
    body = "trial.report(0.5, 1)\n" if reports else ""
    command = script(tmp_path, REPORTING + body + "print('ready', flush=True)\ntime.sleep(60)")
    worker = start(*WORKER, "--max-trials", "1", "--grace", "0.5", "--", *command, cwd=tmp_path)
    until(lambda: "ready" in log_of(tmp_path))

    study.stop_trial(0, reason="enough")

    assert worker.wait(patient(60)) == (0 if reports else 1)
    assert states(study) == ["PRUNED" if reports else "FAIL"]
    assert "did not stop when asked: enough" in (study.state.trials[0].reason or "")


def test_a_trial_that_was_asked_to_stop_does_not_run_again_when_its_worker_is_preempted_meanwhile(
    study: Study, tmp_path: Path
) -> None:
    command = script(tmp_path, REPORTING + "trial.report(0.5, 1)\nprint('ready', flush=True)\ntime.sleep(60)")
    worker = start(*WORKER, "--grace", "30", "--", *command, cwd=tmp_path)
    until(lambda: "ready" in log_of(tmp_path))
    study.stop_trial(0, reason="diverged")
    worker.send_signal(signal.SIGTERM)

    assert worker.wait(patient(60)) == 75
    assert states(study) == ["PRUNED"]
    assert study.state.trials[0].reason == "diverged"
    assert re.search(r"^trial 0: PRUNED after .* s: diverged$", (tmp_path / "worker.err").read_text(), re.MULTILINE)


def log_of(where: Path, number: int = 0) -> str:
    path = where / "hopaas-logs" / "s" / f"{number}.log"
    return path.read_text() if path.exists() else ""


# --- pre-emption and time --------------------------------------------------------------------------------------------

SAVES_ITSELF = """
import json, os, signal, sys, time
from pathlib import Path
from hopaas_p2p.ports.client import Trial
trial = Trial()
begin = int(os.environ.get("HOPAAS_RESUME_STEP", 0))
if begin:
    assert Path(os.environ["HOPAAS_CHECKPOINT"]).read_text() == f"weights {begin}"
step = begin
def save(number, frame):
    Path("weights").write_text(f"weights {step}")
    trial.checkpoint("weights", step)
    sys.exit(0)
signal.signal(signal.SIGUSR1, save)
while step < begin + (10_000 if not begin else 3):
    step += 1
    trial.report(1.0 / step, step)
    print("step", step, flush=True)
    time.sleep(0.02)
print(json.dumps({"value": step}))
"""


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_a_pre_empted_trial_saves_itself_and_goes_on_in_another_worker(
    study: Study, tmp_path: Path, number: signal.Signals
) -> None:
    study.set_budget(1)
    command = script(tmp_path, SAVES_ITSELF.replace("SIGUSR1", number.name))
    worker = start(*WORKER, "--", *command, cwd=tmp_path)
    until(lambda: "step 3" in log_of(tmp_path))

    worker.send_signal(number)

    assert worker.wait(patient(60)) == 75
    trial = study.state.trials[0]
    assert trial.state.name == "WAITING"
    assert trial.attempt == 1
    assert trial.history[-1].why == f"pre-empted: {number.name}"
    (checkpoint,) = trial.checkpoints
    work(tmp_path, command)
    assert states(study) == ["COMPLETE"]
    assert study.trials[0].value == checkpoint.step + 3
    assert list(study.trials[0].intermediate_values) == list(range(1, checkpoint.step + 4))


PAUSES = """
import json, os
from pathlib import Path
from hopaas_p2p.ports.client import Trial
trial = Trial()
begin = int(os.environ.get("HOPAAS_RESUME_STEP", -1)) + 1
print("begins", begin)
if begin:
    assert Path(os.environ["HOPAAS_CHECKPOINT"]).read_text() == f"weights {begin - 1}"
for step in range(begin, 4):
    if trial.report(trial.params["lr"], step):
        Path("weights").write_text(f"weights {step}")
        trial.checkpoint("weights", step)
        raise SystemExit
print(json.dumps({"value": trial.params["lr"]}))
"""


def test_a_command_pauses_at_a_rung_and_its_continuation_has_the_checkpoint(tmp_path: Path) -> None:
    study = campaign(tmp_path, budget=4, fidelity=hopaas_p2p.Rungs(min=1, max=4, eta=2))

    said = work(tmp_path, script(tmp_path, PAUSES))

    trials = study.state.trials
    assert said.count(": PAUSED after") == sum(trial.paused for trial in trials)
    continued = [trial for trial in trials if trial.continues is not None]
    assert continued
    assert "COMPLETE" in states(study)
    for trial in continued:
        assert log_of(tmp_path, trial.number).startswith(f"begins {max(trials[trial.continues].reports) + 1}\n")
    assert sum(log_of(tmp_path, trial.number).startswith("begins 0\n") for trial in trials) == 4
    kept = {path.name for path in (tmp_path / "store").rglob("checkpoint/*")}
    assert kept, "complete trials keep theirs"
    assert kept.isdisjoint(key.rpartition("/")[2] for key in unneeded(study.state))
    study.close()


def test_a_command_that_ignores_the_signal_is_ended_and_its_trial_given_back(study: Study, tmp_path: Path) -> None:
    command = script(
        tmp_path,
        """
        import signal, subprocess, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sleeper = subprocess.Popen(["sleep", "600"])
        print("ready", sleeper.pid, flush=True)
        time.sleep(600)
        """,
    )
    worker = start(*WORKER, "--grace", "0.3", "--", *command, cwd=tmp_path)
    grandchild = int(until(lambda: log_of(tmp_path).partition("ready ")[2].strip()))

    worker.send_signal(signal.SIGTERM)

    assert worker.wait(patient(60)) == 75
    assert states(study) == ["WAITING"]
    until(lambda: not alive(grandchild), what="the end of all that the command started")


@pytest.mark.parametrize("told", ["", "trap '' TERM; "], ids=["", "ignores-sigterm"])
def test_a_killed_worker_leaves_nothing_of_its_command_behind(study: Study, tmp_path: Path, told: str) -> None:
    worker = start(*WORKER, "--", "sh", "-c", f"{told}sleep 300 & echo $$ $!; wait; sleep 300", cwd=tmp_path)
    child, grandchild = map(int, until(lambda: log_of(tmp_path).split()))
    assert alive(child) and alive(grandchild)  # noqa: PT018

    worker.kill()
    worker.wait()

    until(lambda: not alive(child) and not alive(grandchild), what="the end of the command")


def test_a_command_that_the_batch_system_signals_first_is_given_back_all_the_same(study: Study, tmp_path: Path) -> None:
    worker = start(
        *WORKER,
        "--",
        *script(tmp_path, "import os, time; print(os.getpid(), flush=True); time.sleep(60)"),
        cwd=tmp_path,
    )
    child = int(until(lambda: log_of(tmp_path).strip()))

    os.kill(child, signal.SIGTERM)
    worker.send_signal(signal.SIGTERM)

    assert worker.wait(patient(60)) == 75
    assert states(study) == ["WAITING"]


def test_a_result_that_comes_within_the_grace_counts(study: Study, tmp_path: Path) -> None:
    command = script(
        tmp_path,
        """
        import json, signal, sys
        signal.signal(signal.SIGTERM, lambda *_: (print(json.dumps({"value": 3})), sys.exit(0)))
        print("ready", flush=True)
        signal.pause()
        """,
    )
    worker = start(*WORKER, "--", *command, cwd=tmp_path)
    until(lambda: "ready" in log_of(tmp_path))

    worker.send_signal(signal.SIGTERM)

    assert worker.wait(patient(60)) == 75
    assert states(study) == ["COMPLETE"]


def test_ctrl_c_gives_the_trial_back(study: Study, tmp_path: Path) -> None:
    worker = start(
        *WORKER, "--", *script(tmp_path, "print('ready', flush=True); import time; time.sleep(60)"), cwd=tmp_path
    )
    until(lambda: "ready" in log_of(tmp_path))

    worker.send_signal(signal.SIGINT)

    assert worker.wait(patient(60)) == 130
    assert states(study) == ["WAITING"]
    assert study.state.trials[0].history[-1].why == "interrupted: SIGINT"


PROGRAM = """
import pathlib, time, hopaas_p2p
study = hopaas_p2p.open_study("{store}", "{name}")
study.optimize(lambda trial: pathlib.Path("begun").touch() or time.sleep(60))
"""


@pytest.mark.parametrize(("how", "code"), [("worker", 75), ("optimize", 129)])
def test_a_closed_terminal_gives_the_trial_back(study: Study, tmp_path: Path, how: str, code: int) -> None:
    (tmp_path / "program.py").write_text(PROGRAM.format(store=study.storage.url, name=study.name))
    command = (
        [sys.executable, "program.py"]
        if how == "optimize"
        else [*CLI, *WORKER, "--", "sh", "-c", "touch begun; sleep 60"]
    )
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        os.execv(command[0], command)
    until((tmp_path / "begun").exists)
    os.close(terminal)  # SIGHUP, and nothing can be printed any more

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == code
    assert states(study) == ["WAITING"]


@pytest.mark.parametrize("how", ["worker", "optimize"])
def test_nohup_keeps_a_program_running_when_its_terminal_is_closed(study: Study, tmp_path: Path, how: str) -> None:
    (tmp_path / "program.py").write_text(PROGRAM.format(store=study.storage.url, name=study.name))
    command = (
        [sys.executable, "program.py"]
        if how == "optimize"
        else [*CLI, *WORKER, "--", "sh", "-c", "touch begun; sleep 60"]
    )
    program = subprocess.Popen(["nohup", *command], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until((tmp_path / "begun").exists)
    program.send_signal(signal.SIGHUP)
    program.send_signal(signal.SIGTERM)

    assert program.wait(patient(60)) == {"worker": 75, "optimize": 143}[how]
    assert study.state.trials[0].history[-1].why in ("pre-empted: SIGTERM", "interrupted: SystemExit")


@pytest.mark.parametrize("number", PREEMPTIONS)
def test_a_worker_that_is_pre_empted_while_it_opens_the_store_is_to_be_run_again(
    tmp_path: Path, number: signal.Signals
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"postgresql://u@127.0.0.1:{silent.getsockname()[1]}/db"
        worker = start("worker", "--store", place, "--study", "s", "--", "true", cwd=tmp_path)
        silent.settimeout(patient(60))
        with silent.accept()[0]:
            worker.send_signal(number)
            assert worker.wait(patient(60)) == 75


def test_a_second_ctrl_c_ends_a_command_that_does_not_end_by_itself(study: Study, tmp_path: Path) -> None:
    stubborn = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('ready', flush=True)"
    worker = start(*WORKER, "--", *script(tmp_path, f"{stubborn}; time.sleep(600)"), cwd=tmp_path)
    until(lambda: "ready" in log_of(tmp_path))

    worker.send_signal(signal.SIGINT)
    until(lambda: "a command has 300 s to save its work; Ctrl-C again" in (tmp_path / "worker.err").read_text())
    assert worker.poll() is None
    worker.send_signal(signal.SIGINT)

    assert worker.wait(patient(20)) == 130
    assert states(study) == ["WAITING"]


def test_a_quiet_worker_offers_no_second_ctrl_c_when_it_is_over(study: Study, tmp_path: Path) -> None:
    program = "print('ready', flush=True); import time; time.sleep(60)"
    worker = start(*WORKER, "--quiet", "--", *script(tmp_path, program), cwd=tmp_path)
    until(lambda: "ready" in log_of(tmp_path))
    worker.send_signal(signal.SIGINT)
    assert worker.wait(patient(60)) == 130
    assert (tmp_path / "worker.err").read_text() == ""


def test_trials_that_run_at_a_time_have_devices_of_their_own_and_cost_the_process_once(tmp_path: Path) -> None:
    study = campaign(tmp_path, budget=4)
    body = f"""
    import json, os, pathlib, time
    place = pathlib.Path({str(tmp_path)!r})
    number = int(os.environ["HOPAAS_TRIAL"])
    (place / str(number)).write_text(os.environ["CUDA_VISIBLE_DEVICES"])
    while not (place / str(number ^ 1)).exists():  # never, if they ran one after the other
        time.sleep(0.02)
    time.sleep(1.0)
    print(json.dumps({{"value": len(os.sched_getaffinity(0)), "threads": os.environ["OMP_NUM_THREADS"]}}))
    """
    began = time.monotonic()

    said = work(tmp_path, script(tmp_path, body), "--parallel", "2", CUDA_VISIBLE_DEVICES="7,8", HOPAAS_CORES="2")

    assert states(study) == ["COMPLETE"] * 4
    assert {(tmp_path / one).read_text() for one in "01"} == {"7", "8"}
    assert {trial.value for trial in study.trials} == {max(1, len(os.sched_getaffinity(0)) // 2)}
    assert said.count("4 trials, 4 complete, best of the study #") == 1
    assert said.count("No trial to run") == 1
    gpus, cores = (study.state.ledger.spent(what) * 3600 for what in ("gpu_hours", "core_hours"))
    assert 2 * 2.0 <= gpus == cores <= 2 * (time.monotonic() - began)
    study.close()


def test_a_signal_reaches_all_trials_that_run_at_a_time(study: Study, tmp_path: Path) -> None:
    command = script(tmp_path, "import time; time.sleep(60)")
    worker = start(*WORKER, "--parallel", "2", "--max-trials", "2", "--", *command, cwd=tmp_path)
    until(lambda: states(study) == ["RUNNING"] * 2)

    worker.send_signal(signal.SIGTERM)

    assert worker.wait(patient(60)) == 75
    assert states(study) == ["WAITING"] * 2


def test_a_trial_that_nears_the_time_limit_is_given_back(study: Study, tmp_path: Path) -> None:
    command = script(tmp_path, "import time; time.sleep(60)")

    said = work(tmp_path, command, "--time-limit", "3s", "--grace", "0.2", code=75)

    assert states(study) == ["WAITING"]
    assert study.state.trials[0].history[-1].why == "out of time"
    assert "trial 0 is returned: out of time" in said


def test_what_never_ends_in_time_and_writes_no_checkpoint_fails_in_the_end(study: Study, tmp_path: Path) -> None:
    command = script(tmp_path, "import time; time.sleep(60)")

    for _ in range(3):
        work(tmp_path, command, "--time-limit", "1.8s", "--grace", "0.2", code=75)

    assert states(study) == ["FAIL"]
    assert "3 times; it writes no checkpoints" in (study.state.trials[0].reason or "")


def finished_trial(study: Study, seconds: float, *, imported: bool = False) -> None:
    """A complete trial that took so long, by its record."""
    import datetime

    import optuna

    running, complete = optuna.trial.TrialState.RUNNING, optuna.trial.TrialState.COMPLETE
    frozen = optuna.trial.create_trial(params={"lr": 0.01, "depth": 2}, distributions=study.space, value=1.0)
    frozen.datetime_complete = datetime.datetime.now()
    frozen.datetime_start = frozen.datetime_complete - datetime.timedelta(seconds=seconds)
    if not imported:
        frozen.state, frozen.values, frozen.datetime_complete = running, None, None
    trial = study.storage.create_new_trial(study.study_id, frozen)
    if not imported:
        study.storage.set_trial_state_values(trial, complete, [1.0])


def test_a_study_that_gives_out_no_more_needs_no_other_job_however_little_time_is_left(
    study: Study, tmp_path: Path
) -> None:
    for _ in range(2):
        finished_trial(study, 20.0)
    running = study.ask()  # the last of the budget: this process runs it

    said = work(tmp_path, ["true"], "--time-limit", "10s", "--grace", "1", code=0)

    assert "budget is used up" in said
    study.tell(running, 1.0)


def test_no_trial_is_started_that_does_not_fit(study: Study, tmp_path: Path) -> None:
    study.set_budget(9)
    for _ in range(3):
        finished_trial(study, 20.0)
    command = script(tmp_path, "import time; time.sleep(3); print('{\"value\": 1}')")

    said = work(tmp_path, command, "--time-limit", "28s", "--grace", "1", code=75)

    assert states(study) == ["COMPLETE"] * 4  # after the fourth, 25 s are left, and 27 are needed
    assert re.search("no trial fits into the 2[0-3] s that are left before --grace", said)  # 2.1 s are kept


def test_trials_longer_than_the_job_are_refused_with_the_cure(study: Study, tmp_path: Path) -> None:
    finished_trial(study, 3600.0)

    said = work(tmp_path, ["true"], "--time-limit", "30m", code=78)

    assert "takes 3600 s (median), and this job has only 1800 s: ask for more time" in said
    assert states(study) == ["COMPLETE"]


def test_what_was_imported_says_nothing_about_the_time_that_a_trial_takes_here(study: Study, tmp_path: Path) -> None:
    for _ in range(2):
        finished_trial(study, 14 * 86_400.0, imported=True)

    work(tmp_path, ["echo", '{{"value": 1}}'], "--time-limit", "10m", "--grace", "1", code=0)

    assert states(study) == ["COMPLETE"] * 3


def test_a_job_shorter_than_the_grace_is_refused_and_not_run_again_for_ever(study: Study, tmp_path: Path) -> None:
    said = work(tmp_path, ["true"], "--time-limit", "5m", code=78)

    assert "this job has 300 s, of which 315 s are kept" in said
    assert "--grace" in said
    assert states(study) == []


# --- exit codes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("happens", "code"), [("stop", 0), ("fail", 1), ("drain", 0)])
def test_the_exit_code_says_whether_to_run_again(tmp_path: Path, happens: str, code: int) -> None:
    study = campaign(tmp_path, max_failures=1)
    match happens:
        case "stop":
            study.stop_all()
        case "fail":
            study.tell(study.ask(), state="fail")
        case "drain":
            study.drain(site="north")
    before = len(states(study))

    work(tmp_path, ["echo", '{{"value": 1}}'], "--site", "north", code=code)

    assert len(states(study)) == before
    study.close()


def test_a_paused_study_is_waited_for(study: Study, tmp_path: Path) -> None:
    study.pause()
    worker = start(*WORKER, "--", "echo", '{{"value": 1}}', cwd=tmp_path)
    said = "Waiting: the study is paused; resume it with: hopaas-p2p study resume s --store "
    until(lambda: said in (tmp_path / "worker.err").read_text())
    assert states(study) == []
    study.resume()
    assert worker.wait(60) == 0
    assert states(study) == ["COMPLETE"] * 3


def test_a_paused_study_is_waited_for_until_the_time_is_up(study: Study, tmp_path: Path) -> None:
    study.pause()
    work(tmp_path, ["echo", '{{"value": 1}}'], "--time-limit", "3s", "--grace", "0.2", code=75)
    assert states(study) == []


def test_a_command_that_always_fails_does_not_run_for_ever(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_LONGEST_BACKOFF", 0.0)
    study.set_budget(None)
    said: list[str] = []
    command = ["sh", "-c", "echo 'no such module' >&2; exit 3"]

    assert loop.Worker(study, command, logs=tmp_path, say=said.append).work() == loop.FAILED

    assert states(study) == ["FAIL"] * 10
    assert said[-1] == "10 trials, 10 failed"
    assert said[-2].startswith("all 10 trials that ran here failed, so this worker stops. The last one: ")
    assert said[-2].endswith(f"the command ended with 3: no such module · log {tmp_path / 's' / '9.log'}")


def test_a_command_that_worked_once_may_fail_often(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_LONGEST_BACKOFF", 0.0)
    study.set_budget(None)
    command = ["sh", "-c", "test $HOPAAS_TRIAL != 0 || echo '{{\"value\": 1}}'"]

    assert loop.Worker(study, command, logs=tmp_path, max_trials=13, say=[].append).work() == loop.DONE

    assert states(study) == ["COMPLETE"] + ["FAIL"] * 12


def test_a_worker_that_ran_its_trials_is_done_however_little_time_is_left(study: Study, tmp_path: Path) -> None:
    command, said = ["sh", "-c", "sleep 1; echo '{{\"value\": 1}}'"], list[str]()
    limits = {"max_trials": 1, "time_limit": 3.0, "grace": 0.1}

    assert loop.Worker(study, command, logs=tmp_path, say=said.append, **limits).work() == loop.DONE  # type: ignore[arg-type]

    assert states(study) == ["COMPLETE"]
    assert not any("no trial fits" in line for line in said)


def test_quick_failures_are_followed_by_longer_and_longer_pauses(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    worker = loop.Worker(study, ["true"], logs=tmp_path, say=[].append)
    monkeypatch.setattr(loop.time, "monotonic", lambda: sum(pauses))
    monkeypatch.setattr(loop.time, "sleep", pauses.append)
    waited = []
    for _ in range(8):
        pauses.clear()
        worker._back_off("FAIL")
        waited.append(round(sum(pauses), 3))
    assert waited == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    pauses.clear()
    worker._back_off("COMPLETE")
    assert pauses == []
    worker._back_off("FAIL")
    assert sum(pauses) == pytest.approx(0.1), "a success begins anew"


def test_after_a_signal_no_call_waits_long_for_the_store(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer, seen, wait = study.storage.peer, list[bool](), loop.Child.wait_for
    monkeypatch.setattr(loop.Child, "wait_for", lambda *given: seen.append(peer.hurried) or wait(*given))
    command = ["sh", "-c", "trap '' TERM; sleep 1; kill -TERM $PPID; sleep 1; kill -KILL $$"]

    assert loop.Worker(study, command, logs=tmp_path / "logs", say=[].append).work() == loop.AGAIN

    assert (seen[0], seen[-1]) == (False, True), "also while the command saves its work"


def test_a_worker_that_is_interrupted_asks_the_store_for_nothing_before_it_leaves(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = loop.Worker(study, ["true"], logs=tmp_path, say=[].append)
    worker._received.append(signal.SIGINT)

    def away(_handle: object) -> None:
        raise StoreUnreachable("the store is away")

    monkeypatch.setattr(StudyHandle, "refresh", away)
    assert worker.work() == 130


def test_a_worker_whose_trials_all_failed_says_so_by_its_exit_code(study: Study, tmp_path: Path) -> None:
    work(tmp_path, ["false"], "--max-trials", "2", code=1)
    assert states(study) == ["FAIL", "FAIL"]


@pytest.mark.parametrize(
    ("command", "code", "state"),
    [("echo '{{\"value\": 1}}'", 0, "COMPLETE"), ("exit 4", 1, "FAIL"), ("sleep 60", 75, "WAITING")],
)
def test_run_runs_one_trial_and_says_how_it_ended(
    study: Study, tmp_path: Path, command: str, code: int, state: str
) -> None:
    words = ["run", "--store", "store", "--study", "s", "--time-limit", "2.4s", "--grace", "0.2", "--json"]

    done = cli(*words, "--", "sh", "-c", command, cwd=tmp_path, check=False)

    assert done.returncode == code, done.stderr
    assert json.loads(done.stdout) == {"trials": [{"number": 0, "state": state}]}
    assert states(study) == [state]


def test_run_says_that_the_trial_of_a_result_was_taken_over(study: Study, tmp_path: Path) -> None:
    ready, go = tmp_path / "ready", tmp_path / "go"
    body = f"""
    import pathlib, time
    pathlib.Path({str(ready)!r}).touch()
    while not pathlib.Path({str(go)!r}).exists():
        time.sleep(0.02)
    from hopaas_p2p.ports.client import Trial
    Trial().tell(0.5)
    """
    running = start("run", *WORKER[1:], "--", *script(tmp_path, body), cwd=tmp_path)
    until(ready.exists)
    study.handle.say(TrialReclaim(0, study.state.trials[0].epoch))
    go.touch()

    assert running.wait(30) == 11
    assert [one.values for one in study.state.trials if one.late_of == 0] == [(0.5,)]


def test_run_without_work_exits_with_3(study: Study, tmp_path: Path) -> None:
    study.stop_all()

    done = cli("run", "-s", "store", "--study", "s", "--", "true", cwd=tmp_path, check=False)

    assert done.returncode == 3


def test_a_worker_that_stays_takes_over_what_a_killed_one_leaves(tmp_path: Path) -> None:
    study = campaign(tmp_path, lease_ttl=1.0, budget=1)
    slow = script(tmp_path, "import time; print('ready', flush=True); time.sleep(60)", "slow.py")
    killed = start(*WORKER, "--", *slow, cwd=tmp_path)
    until(lambda: "ready" in log_of(tmp_path))
    stays = start(*WORKER, "--stay", "--", "echo", '{{"value": 1}}', cwd=tmp_path)

    killed.kill()
    killed.wait()

    assert stays.wait(patient(60)) == 0
    assert states(study) == ["FAIL", "COMPLETE"]
    assert study.state.trials[1].retry_of == 0
    study.close()


def begin_a_long_trial(where: Path) -> subprocess.Popen[str]:
    """A worker whose trial runs, as long as that worker lives."""
    body = """
    import os, time
    worker = os.getppid()
    print("ready", flush=True)
    while os.getppid() == worker:
        time.sleep(0.1)
    """
    slow = script(where, body, "slow.py")
    begun = start(*WORKER, "--", *slow, cwd=where)
    until(lambda: "ready" in log_of(where))
    return begun


def test_after_a_limit_a_worker_waits_for_nobody_since_no_trial_can_start(tmp_path: Path) -> None:
    limit = hopaas_p2p.Budget(until=hopaas_p2p.Until(target=2.0))
    campaign(tmp_path, lease_ttl=3600.0, budget=limit).close()
    killed = begin_a_long_trial(tmp_path)
    killed.kill()
    killed.wait()

    began = time.monotonic()
    said = work(tmp_path, ["echo", '{{"value": 1}}'])

    assert time.monotonic() - began < patient(60)
    assert "the target 2 is reached" in said
    assert "Waiting" not in said
    study = campaign(tmp_path, budget=limit, lease_ttl=3600.0)
    assert "RUNNING" in states(study)
    study.close()


def test_after_a_limit_a_worker_leaves_though_a_live_owners_trial_runs(tmp_path: Path) -> None:
    limit = hopaas_p2p.Budget(until=hopaas_p2p.Until(target=2.0))
    study = campaign(tmp_path, lease_ttl=2.0, budget=limit)
    alive = begin_a_long_trial(tmp_path)

    work(tmp_path, ["echo", '{{"value": 1}}'])

    assert study.state.ledger.reached == "the target 2 is reached"
    assert running(study)
    alive.terminate()
    assert alive.wait(patient(60)) == 75
    study.close()


def test_a_store_that_stays_away_until_the_time_limit_means_run_me_again(study: Study, tmp_path: Path) -> None:
    store, away = tmp_path / "store" / "v1", tmp_path / "away"
    spooling = {"XDG_STATE_HOME": str(tmp_path / "state")}
    body = f"""
    import json, os, shutil
    shutil.copytree({str(store)!r}, {str(away)!r}, symlinks=True, ignore=shutil.ignore_patterns(".*"))
    while os.path.exists({str(store)!r}):  # not renamed: descriptors that are open would go on working
        shutil.rmtree({str(store)!r}, ignore_errors=True)
    print(json.dumps({{"value": 1}}))
    """

    terms = ("--time-limit", "8s", "--grace", "1")
    said = work(tmp_path, script(tmp_path, body), *terms, code=75, HOPAAS_PATIENCE="1", **spooling)

    shutil.rmtree(store, ignore_errors=True)
    away.rename(store)
    assert "run this job again" in said
    listed = json.loads(cli("admin", "spool", "list", "--json", **spooling).stdout)
    assert [row["trials"] for row in listed] == [[0]]
    cli("admin", "spool", "send", **spooling)
    assert states(study) == ["COMPLETE"]


@pytest.mark.parametrize("what", ["TrialSocketServer", "open_regular", "Child"])
def test_a_node_without_a_descriptor_left_means_run_me_again_and_the_trial_is_returned(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def fail(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    said: list[str] = []
    if what == "Child":
        monkeypatch.setattr(child.Child, "_execute_child", fail)
    else:
        monkeypatch.setattr(loop, what, fail)
    assert loop.Worker(study, ["true"], logs=tmp_path / "logs", say=said.append).work() == loop.AGAIN
    assert "Too many open files" in said[-1]
    assert states(study) == ["WAITING"]


@pytest.mark.parametrize("name", ["hopaas-trial-socket", "hopaas-output"])
def test_a_node_without_a_thread_left_means_run_me_again_and_leaves_no_command_behind(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    start, began, folders = threading.Thread.start, tmp_path / "began", set[str]()
    make = tempfile.mkdtemp

    def start_others(thread: threading.Thread) -> None:
        if thread.name == name:
            until(lambda: name != "hopaas-output" or began.exists())
            raise RuntimeError(NO_THREAD)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_others)
    monkeypatch.setattr(tempfile, "mkdtemp", lambda **given: (made := make(**given), folders.add(made))[0])
    said: list[str] = []
    command = ["sh", "-c", f"echo $$ > {began}; exec sleep 600"]
    assert loop.Worker(study, command, logs=tmp_path / "logs", say=said.append).work() == loop.AGAIN
    assert "no thread can be started" in said[-1]
    assert states(study) == ["WAITING"]
    assert folders
    assert not any(map(os.path.exists, folders))
    if name == "hopaas-output":
        with pytest.raises(ProcessLookupError):
            os.kill(int(began.read_text()), 0)


def test_a_trial_that_a_full_disk_keeps_from_beginning_is_returned(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    worker = loop.Worker(study, ["true"], logs=tmp_path / "logs")
    monkeypatch.setattr(tempfile, "mkdtemp", fail)
    with pytest.raises(OSError, match="No space left"):
        worker.work()
    assert states(study) == ["WAITING"]


def test_a_node_without_a_descriptor_left_when_a_job_begins_means_run_me_again_too(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> NoReturn:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(loop.Worker, "work", fail)
    monkeypatch.chdir(tmp_path)
    assert main.run(["worker", "--store", study.storage.url, "--study", "s", "--", "true"]) == 75
    assert "Too many open files. Run this job again later." in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["worker", "run"])
def test_a_store_that_is_away_when_a_job_begins_means_run_me_again_too(tmp_path: Path, verb: str) -> None:
    nobody = "postgresql://u@127.0.0.1:1/d"

    done = cli(verb, "-s", nobody, "--study", "s", "--", "true", cwd=tmp_path, check=False, HOPAAS_PATIENCE="0.1")

    assert done.returncode == 75
    assert "Run this job again later" in done.stderr


def test_the_help_is_quick_and_complete() -> None:
    done = cli("worker", "--help")

    for word in ("--time-limit", "--grace", "--site", "--max-trials", "HOPAAS_CHECKPOINT", "75"):
        assert word in done.stdout


def test_the_client_is_standard_library_only_and_short(tmp_path: Path) -> None:
    import hopaas_p2p.ports.client as client

    source = Path(client.__file__).read_text()
    code = "import sys; before = set(sys.modules); import client; print(sorted(set(sys.modules) - before))"
    (tmp_path / "client.py").write_text(source)
    subprocess.run([sys.executable, "-S", "-c", code], check=True, cwd=tmp_path, capture_output=True)
    lines = [line for line in source.splitlines() if line.strip() and not line.strip().startswith(("#", '"""'))]
    assert len(lines) < 40


def old_study(folder: Path) -> tuple[str, optuna.Study]:
    """A study of Optuna's, and the file that keeps it."""
    path = str(folder / "old.journal")
    storage = optuna.storages.JournalStorage(JournalFileBackend(path))
    return path, optuna.create_study(storage=storage, study_name="old")


def test_an_imported_study_goes_on_under_worker_in_the_space_of_its_trials(tmp_path: Path) -> None:
    url, old = old_study(tmp_path)
    old.optimize(lambda trial: trial.suggest_float("x", 0, 1) + trial.suggest_int("n", 1, 3), n_trials=3)
    here = {"HOPAAS_STORE": f"{tmp_path}/store", "HOPAAS_STUDY": "old"}
    wrong = cli("study", "import", url, **here, check=False)
    assert f"hopaas-p2p study import --from {url}" in wrong.stderr
    cli("study", "import", "--from", url, **here)

    done = cli("worker", "--max-trials", "2", "--", "echo", '{"value": {x}}', cwd=tmp_path, **here)

    assert "takes it from the trials: x=float(0,1), n=int(1,3)" in done.stderr
    study = hopaas_p2p.open_study(here["HOPAAS_STORE"], "old", create=False)
    assert len(study.trials) == 5
    assert study.trials[-1].params.keys() == {"x", "n"}
    assert study.space == {}, "others may suggest as they go"
    cli("study", "set", "--space", "x=float(0,2)", "--space", "n=int(1,3)", **here)
    study.close()
    asked = json.loads(cli("trial", "ask", "--json", **here).stdout)
    assert asked["params"].keys() == {"x", "n"}
    cli("study", "create", "other", "--space", "y=float(0,1)", **here)
    refused = cli("study", "set", "other", "--space", "y=float(0,2)", HOPAAS_STORE=here["HOPAAS_STORE"], check=False)
    assert (refused.returncode, "is fixed; create another study" in refused.stderr) == (78, True)


def test_a_space_on_import_is_the_studys(tmp_path: Path) -> None:
    url, old = old_study(tmp_path)
    old.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    cli("study", "import", "--from", url, "--space", "x=float(0,5)", HOPAAS_STORE=f"{tmp_path}/store")
    study = hopaas_p2p.open_study(f"{tmp_path}/store", "old", create=False)
    assert study.space == {"x": optuna.distributions.FloatDistribution(0, 5)}
    study.close()


def test_a_space_that_is_not_known_is_asked_for(tmp_path: Path) -> None:
    url, old = old_study(tmp_path)

    def conditional(trial: optuna.Trial) -> float:
        return trial.suggest_float("x" if trial.number else "y", 0, 1)

    old.optimize(conditional, n_trials=2)
    here = {"HOPAAS_STORE": f"{tmp_path}/store", "HOPAAS_STUDY": "old"}
    cli("study", "import", "--from", url, **here)
    done = cli("worker", "--", "echo", '{"value": {x}}', cwd=tmp_path, check=False, **here)
    assert done.returncode == 2
    assert "not every trial has the same parameters (x, y)" in done.stderr
    assert "hopaas-p2p study set old --space" in done.stderr


def test_a_worker_that_need_not_wait_says_for_what_it_would_and_leaves(tmp_path: Path) -> None:
    study = campaign(tmp_path, budget=3)
    here = {"HOPAAS_STORE": f"{tmp_path}/store", "HOPAAS_STUDY": "s"}
    forgotten = json.loads(cli("trial", "ask", "--ttl", "900", "--json", **here).stdout)["number"]

    done = cli("worker", "--no-wait", "--", "echo", '{"value": {lr}}', cwd=tmp_path, check=False, **here)

    assert done.returncode == 75
    assert f"still running: trial {forgotten} of " in done.stderr
    assert "last heard of" in done.stderr
    assert "requeue" not in done.stderr, "its time is not up"
    assert f"2 trials, 2 complete, best of the study #{study.best_trial.number} = " in done.stderr
    study.close()
