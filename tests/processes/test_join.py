"""`invite`, `join` and `submit` as people type them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from pathlib import Path

import pytest

import hopaas_p2p
from hopaas_p2p.study import Study
from tests.support.processes import CLI, campaign, cli, environment, states

TRIAL = ["sh", "-c", 'echo "{\\"value\\": 0.5}"; : {lr}']


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """Where somebody else works, with a configuration of their own."""
    place = tmp_path / "there"
    place.mkdir()
    return place


def invitation(tmp_path: Path, *options: str) -> str:
    return cli("invite", "s", "--store", "store", *options, cwd=tmp_path).stdout


def join(there: Path, *words: str, text: str | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    env = environment(XDG_CONFIG_HOME=str(there / "config"), **env)
    command = (*CLI, *words)
    return subprocess.run(command, input=text or "", capture_output=True, text=True, timeout=120, cwd=there, env=env)


def test_one_command_leads_from_the_string_to_a_finished_trial(study: Study, tmp_path: Path, there: Path) -> None:
    done = join(there, "join", "--max-trials", "1", "--", *TRIAL, text=invitation(tmp_path, "--site", "north"))
    assert done.returncode == 0, done.stderr
    assert states(study) == ["COMPLETE"]
    assert study.provenance(0)["site"] == "north"


def test_the_next_time_needs_no_invitation_and_other_commands_find_the_study(
    study: Study, tmp_path: Path, there: Path
) -> None:
    (there / "my.invitation").write_text(invitation(tmp_path))
    assert join(there, "join", "my.invitation").returncode == 0
    assert join(there, "join", "--max-trials", "1", "--", *TRIAL).returncode == 0
    shown = join(there, "study", "show", "--json")
    assert (
        json.loads(shown.stdout)["counts"]["COMPLETE"] == 1 if "counts" in shown.stdout else "COMPLETE" in shown.stdout
    )


def test_a_join_says_where_it_counts_and_is_undone_by_leaving(study: Study, tmp_path: Path, there: Path) -> None:
    (there / "my.invitation").write_text(invitation(tmp_path))

    done = join(there, "join", "my.invitation")

    assert "every command for which no store is set" in done.stderr
    assert "hopaas-p2p join --leave s" in done.stderr
    assert "joined/s.toml" in join(there, "config", "show").stdout
    assert join(there, "join", "--leave").returncode == 0
    assert "joined/s.toml" not in join(there, "config", "show").stdout
    again = join(there, "join", "--leave", "s")
    assert (again.returncode, "'s' is not joined here; joined studies: none" in again.stderr) == (2, True)


@pytest.mark.parametrize(
    ("words", "text", "cause"),
    [
        (["join", "--", "true"], "", "no study is joined here yet"),
        (["join", "nowhere", "--", "true"], "", "nowhere: No such file"),
        (["join", "-", "--", "true"], "hpj1-abc", "it is truncated or was changed"),
        (["join", "train.py"], "", "train.py: No such file"),
    ],
)
def test_a_failure_names_its_cause(there: Path, words: list[str], text: str, cause: str) -> None:
    done = join(there, *words, text=text)
    assert done.returncode == 2
    assert cause in done.stderr


def test_a_directory_that_is_not_there_is_said_to_be_so(study: Study, tmp_path: Path, there: Path) -> None:
    text = invitation(tmp_path)
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    done = join(there, "join", "--", "true", text=text)
    (tmp_path / "elsewhere").rename(tmp_path / "store")
    assert done.returncode == 78
    assert "cannot be reached from here" in done.stderr
    assert "direct: open" in done.stderr


@pytest.mark.parametrize("system", ["slurm", "condor"])
def test_what_is_submitted_is_written_and_shown_and_runs_as_it_stands(
    study: Study, tmp_path: Path, there: Path, system: str
) -> None:
    """The script, run by a shell: what a batch system does with it is tested with real ones."""
    words = ["join", "--submit", system, "--dry-run", "--jobs", "3", "--max-trials", "1", "--", *TRIAL]
    done = join(there, *words, text=invitation(tmp_path), HOPAAS_TOKEN="hunter2")
    assert done.returncode == 0, done.stderr
    scripts = sorted((there / "hopaas-jobs").glob("*.sh"))
    assert len(scripts) == 1
    text = scripts[0].read_text()
    assert "hunter2" not in text + done.stderr
    if system != "condor":
        assert text.rstrip() in done.stderr
    env = {"PATH": os.environ["PATH"], "HOME": str(there)}
    ran = subprocess.run([scripts[0]], capture_output=True, text=True, timeout=120, cwd=there, env=env, check=False)
    assert ran.returncode == 0, ran.stderr
    assert states(study) == ["COMPLETE"]


def test_a_study_that_one_has_is_submitted_without_an_invitation(study: Study, tmp_path: Path, there: Path) -> None:
    store = str(tmp_path / "store")
    words = ["submit", "slurm", "--store", store, "--study", "s", "--dry-run", "--time", "1h30m", "--", *TRIAL]
    done = join(there, *words)
    assert done.returncode == 0, done.stderr
    (script,) = (there / "hopaas-jobs").iterdir()
    assert f"HOPAAS_STORE={(tmp_path / 'store').as_uri()}" in script.read_text()
    assert "--time=1:30:00" in script.read_text()


def test_a_token_in_the_environment_goes_into_no_job(study: Study, tmp_path: Path, there: Path) -> None:
    words = ["submit", "slurm", "--store", str(tmp_path / "store"), "--study", "s", "--dry-run", "--", *TRIAL]
    done = join(there, *words, HOPAAS_TOKEN="hunter2")
    assert done.returncode == 78
    assert "HOPAAS_TOKEN_FILE" in done.stderr
    assert not (there / "hopaas-jobs").exists()


@pytest.mark.parametrize("words", [["submit", "slurm"], ["join", "--submit", "slurm"], ["join"], ["worker"], ["run"]])
def test_a_command_that_a_text_does_not_go_into_is_refused_when_it_is_given(
    words: list[str], tmp_path: Path, there: Path
) -> None:
    space = {"kind": hopaas_p2p.Categorical(("adam", "cosine decay"))}
    with contextlib.closing(campaign(tmp_path, space=space)) as made:
        text = invitation(tmp_path) if words[0] == "join" else None
        store = ["--store", str(tmp_path / "store"), "--study", "s"] if text is None else []
        done = join(there, *words, *store, "--", "train", "--kind={kind}", text=text)
        assert done.returncode == 2
        assert "kind may be 'cosine decay'" in done.stderr
        assert "HOPAAS_PARAM_kind" in done.stderr
        assert made.trials == []
    assert not (there / "hopaas-jobs").exists()


def test_where_there_is_no_batch_system_the_script_stays_and_that_is_said(
    study: Study, tmp_path: Path, there: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    words = ["submit", "slurm", "--store", str(tmp_path / "store"), "--study", "s", "--", *TRIAL]
    done = join(there, *words, PATH=str(empty))
    assert done.returncode == 78
    assert "there is no sbatch on this machine" in done.stderr
    assert list((there / "hopaas-jobs").glob("hopaas-s-*.slurm.sh"))


def test_on_kubernetes_the_secret_passes_through_pipes_only(study: Study, tmp_path: Path, there: Path) -> None:
    """A kubectl that writes down its arguments, and what comes by its standard input."""
    folder = tmp_path / "bin"
    folder.mkdir()
    kubectl = folder / "kubectl"
    kubectl.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/arguments\ncase "$*" in *"-f -") cat >> {tmp_path}/piped;; '
        "create*) echo made-by-kubectl;; *) echo applied;; esac\n"
    )
    kubectl.chmod(0o755)
    token = there / "config/hopaas-p2p/joined/s.token"
    assert join(there, "join", text=invitation(tmp_path)).returncode == 0
    token.write_text("hunter2\n")
    settings = token.with_suffix(".toml")
    settings.write_text(f'{settings.read_text()}token_file = "{token}"\n')
    path = f"{folder}:{os.environ['PATH']}"
    words = ["join", "--submit", "kubernetes", "--image", "me/train:1", "--", *TRIAL]
    done = join(there, *words, PATH=path)
    assert done.returncode == 0, done.stderr
    arguments = (tmp_path / "arguments").read_text()
    assert f"--from-file=token={token}" in arguments
    assert "apply -f -" in arguments
    (manifest,) = (path.read_text() for path in (there / "hopaas-jobs").glob("hopaas-s-*.yaml"))
    assert "hunter2" not in arguments + done.stderr + manifest
    assert (tmp_path / "piped").read_text() == f"made-by-kubectl\n{manifest}"
    assert "HOPAAS_TOKEN_FILE" in manifest


def test_where_nodes_reach_nothing_the_store_is_served_to_jobs_through_a_folder(
    study: Study, tmp_path: Path, there: Path
) -> None:
    words = ["join", "--submit", "slurm", "--dry-run", "--via", "folder", "--max-trials", "1", "--", *TRIAL]
    done = join(there, *words, text=invitation(tmp_path))
    assert done.returncode == 0, done.stderr
    pid = int(done.stderr.partition("To stop it: kill ")[2].split()[0])
    try:
        again = join(there, "join", "--submit", "slurm", "--dry-run", "--", *TRIAL)
        assert "a folder server is already running on this node" in again.stderr, "as chosen before"
        (script,) = (there / "hopaas-jobs").glob("*.sh")
        assert "hopaas-p2p/joined/s.box" in script.read_text()
        env = {"PATH": os.environ["PATH"], "HOME": str(there)}
        ran = subprocess.run([script], capture_output=True, text=True, timeout=300, cwd=there, env=env, check=False)
        assert ran.returncode == 0, ran.stderr
        assert states(study) == ["COMPLETE"] * 3
    finally:
        os.kill(pid, 15)
