"""Where others may write too, what we make under names of our own leads nowhere else, and nothing of theirs is run."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna.artifacts import upload_artifact
from optuna.storages import JournalStorage, RDBStorage

from hopaas_p2p import Float, spool
from hopaas_p2p.cli.main import run as cli_main
from hopaas_p2p.errors import ConfigurationError, InvalidInput, NoSuchFile
from hopaas_p2p.files.artifacts import StudyArtifacts
from hopaas_p2p.moving import export_study, files, import_study
from hopaas_p2p.ports.worker import Worker, _as_folder
from hopaas_p2p.report import write_report
from hopaas_p2p.runtime.atomic import locked, open_regular, replace_atomically
from hopaas_p2p.runtime.ownership import named_folder, own_folder
from hopaas_p2p.study import Study, open_study
from hopaas_p2p.trackers.base import Export
from hopaas_p2p.trackers.wandb import WandB
from tests.support.processes import CLI, ROOT, campaign, environment, script
from tests.support.spooled import keep

SECRET = "the user's own"
SUBMIT = ["submit", "slurm", "--store", "../store", "--study", "s", "--", "true"]


def give_away(path: Path) -> None:
    """Let this file, folder or link be another user's."""
    if os.getuid() != 0:
        pytest.skip("needs root to make somebody else's files")
    os.chown(path, 65534, 65534, follow_symlinks=False)


@pytest.fixture
def study(tmp_path: Path) -> Iterator[Study]:
    made = campaign(tmp_path)
    yield made
    made.close()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A folder of the user's, in which nothing is read, written, removed or made executable."""
    folder = tmp_path / "home"
    (folder / "s").mkdir(parents=True)
    names = [".bashrc", "hopaas-s.slurm.sh", "s/0.log"]
    for name in names:
        (folder / name).write_text(SECRET)
        (folder / name).chmod(0o600)
    yield folder
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == sorted(names)
    assert all(path.read_text() == SECRET for path in folder.rglob("*") if path.is_file())
    assert all(stat.S_IMODE((folder / name).stat().st_mode) == 0o600 for name in names)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which everybody may make and rename what they like; the user works there."""
    tmp_path.chmod(0o755)
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o777)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def own_place(tmp_path: Path) -> Path:
    """A folder of the user's, which only the user may write to."""
    folder = tmp_path / "mine"
    folder.mkdir()
    return folder


def run(*words: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    env = environment(XDG_STATE_HOME=str(cwd.parent / "state"), **env)
    return subprocess.run([*CLI, *words], capture_output=True, text=True, timeout=120, cwd=cwd, env=env, check=False)


def script_in(folder: Path) -> Path:
    """The one script of Slurm in this folder, in whose name is a digest of the store."""
    (found,) = folder.glob("hopaas-s-*.slurm.sh")
    return found


# --- job scripts -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("study")
def test_a_link_in_the_place_of_the_folder_of_scripts_is_refused(own_place: Path, home: Path) -> None:
    (own_place / "hopaas-jobs").symlink_to(home)
    done = run("submit", "slurm", "--dry-run", *SUBMIT[2:], cwd=own_place)
    assert done.returncode == 2
    assert "hopaas-jobs is a link or a file, not a folder" in done.stderr


@pytest.mark.usefixtures("study")
def test_a_link_in_the_place_of_a_script_is_replaced_and_not_followed(own_place: Path, home: Path) -> None:
    run("submit", "slurm", "--dry-run", *SUBMIT[2:], cwd=own_place)
    script = script_in(own_place / "hopaas-jobs")
    script.unlink()
    script.symlink_to(home / ".bashrc")
    done = run("submit", "slurm", "--dry-run", *SUBMIT[2:], cwd=own_place)
    assert done.returncode == 0, done.stderr
    assert not script.is_symlink()
    assert script.read_text().startswith("#!/bin/bash")
    assert script.read_text().rstrip() in done.stderr, "what is shown is what was written"


@pytest.mark.usefixtures("study")
def test_what_is_submitted_is_what_was_written_whatever_lies_in_its_place(own_place: Path) -> None:
    """A batch system that looks at the file later than it was written, as a slow one does."""
    (own_place / "bin").mkdir()
    sbatch = own_place / "bin" / "sbatch"
    sbatch.write_text(
        '#!/bin/sh\necho "echo stolen" | tee hopaas-jobs/hopaas-s-*.sh > stolen\ncat "${2:--}" > submitted\necho "$@"\n'
    )
    sbatch.chmod(0o755)
    done = run(*SUBMIT, cwd=own_place, PATH=f"{sbatch.parent}:{os.environ['PATH']}")
    assert done.returncode == 0, done.stderr
    assert "submitted: --parsable." in done.stderr
    assert "stolen" in script_in(own_place / "hopaas-jobs").read_text()
    assert "hopaas-p2p" in (own_place / "submitted").read_text()
    assert "stolen" not in (own_place / "submitted").read_text()


def test_a_job_imports_nothing_from_the_folder_where_it_runs(study: Study, own_place: Path) -> None:
    words = ["submit", "slurm", "--dry-run", *SUBMIT[2:-1], "sh", "-c", 'echo "{{\\"value\\": 1}}"']
    assert run(*words, cwd=own_place).returncode == 0
    for name in ("hopaas_p2p", "click", "json"):
        (own_place / f"{name}.py").write_text("raise SystemExit('stolen')")
    script = script_in(own_place / "hopaas-jobs")
    done = subprocess.run([script], capture_output=True, text=True, timeout=120, cwd=own_place, check=False)
    assert done.returncode == 0, done.stderr
    assert {trial.state.name for trial in study.trials} == {"COMPLETE"}


def test_no_process_of_ours_imports_from_the_folder_where_it_is_started() -> None:
    sources = [path.read_text() for path in (ROOT / "hopaas_p2p").rglob("*.py")]
    started = [line for text in sources for line in text.splitlines() if "sys.executable," in line]
    assert len(started) >= 3
    assert all('sys.executable, "-P", "-m"' in line for line in started)


@pytest.mark.parametrize("system", ["slurm", "condor"])
@pytest.mark.usefixtures("study")
def test_all_that_a_job_prints_goes_to_the_folder_of_the_jobs(system: str, own_place: Path) -> None:
    done = run("submit", system, "--dry-run", *SUBMIT[2:], cwd=own_place)
    assert done.returncode == 0, done.stderr
    text = "".join(path.read_text() for path in (own_place / "hopaas-jobs").iterdir())
    option = r'(#SBATCH --output="|output +=.)'
    assert re.search(f"^{option}{re.escape(str(own_place))}/hopaas-jobs/", text, re.MULTILINE)


@pytest.mark.usefixtures("study")
def test_where_others_may_write_scripts_and_the_output_of_jobs_go_elsewhere(place: Path) -> None:
    done = run("submit", "slurm", "--dry-run", *SUBMIT[2:], cwd=place)
    assert done.returncode == 0, done.stderr
    assert f"others may write to {place}" in done.stderr
    elsewhere = place.parent / "state" / "hopaas-p2p" / "jobs"
    assert f'#SBATCH --output="{elsewhere}/' in script_in(elsewhere).read_text()
    assert list(place.iterdir()) == []


@pytest.mark.usefixtures("study")
def test_where_others_may_write_everywhere_nothing_is_submitted(place: Path) -> None:
    (place.parent / "state").mkdir(mode=0o777)
    (place.parent / "state").chmod(0o777)
    done = run(*SUBMIT, cwd=place)
    assert done.returncode == 2
    assert "Run this in a directory of your own" in done.stderr


# --- logs ------------------------------------------------------------------------------------------------------------


def test_a_link_in_the_place_of_wandbs_folder_is_refused(
    study: Study, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    (tmp_path / "wandb").symlink_to(home)
    with pytest.raises(ConfigurationError, match="is a link or a file"):
        Export(study, WandB("p")).sync()


def test_a_link_in_the_place_of_the_logs_is_refused_before_the_first_trial(
    study: Study, place: Path, home: Path
) -> None:
    (place / "hopaas-logs").symlink_to(home)
    with pytest.raises(InvalidInput, match=r"hopaas-logs is a link.*--logs"):
        Worker(study, ["true"])
    assert study.trials == []


@pytest.mark.parametrize("name", ["hopaas-logs", "hopaas-logs/s"])
def test_a_folder_of_another_user_in_the_place_of_the_logs_is_refused(study: Study, place: Path, name: str) -> None:
    (place / name).mkdir(parents=True)
    give_away(place / name)
    with pytest.raises(InvalidInput, match=r"belongs to nobody.*--logs"):
        Worker(study, ["true"])


def test_no_two_studies_share_a_folder_of_logs(place: Path) -> None:
    long = "a b" * 60
    for name in ("a:b", "a_b", "a%3ab", long, f"{long}c", "\U0001f680" * 60, "\u7814" * 100):
        with contextlib.closing(open_study(place / "store", name, space={"x": Float(0, 1)}, budget=1)) as study:
            Worker(study, ["true"])
    assert len(list((place / "hopaas-logs").iterdir())) == 7


@pytest.mark.parametrize("kind", ["link", "dangling link", "fifo", "hard link"])
def test_what_is_not_a_log_in_the_place_of_one_gets_nothing_and_holds_nobody_up(
    kind: str, study: Study, place: Path, home: Path
) -> None:
    worker = Worker(study, ["true"], max_trials=1)
    log = place / "hopaas-logs" / "s" / "0.log"
    if kind == "fifo":
        os.mkfifo(log)
    elif kind == "hard link":
        log.hardlink_to(home / ".bashrc")
    else:
        log.symlink_to(home / (".bashrc" if kind == "link" else "new"))
    with pytest.raises(InvalidInput, match=r"hopaas-logs/s: .*--logs"):
        worker.work()
    assert [trial.state.name for trial in study.trials] == ["WAITING"]


def test_logs_go_to_the_workers_own_folder_when_another_is_put_in_its_place(
    study: Study, place: Path, home: Path, tmp_path: Path
) -> None:
    swap = "import os; os.rename('hopaas-logs', 'kept'); os.symlink('../home', 'hopaas-logs'); print('{\"value\": 1}')"
    command = script(tmp_path, swap)
    with pytest.raises(InvalidInput, match="is a link"):  # the second trial is not begun
        Worker(study, command).work()
    assert json.loads((place / "kept" / "s" / "0.log").read_text()) == {"value": 1}


# --- files that somebody names, and the spool ------------------------------------------------------------------------


def test_a_report_takes_the_place_of_a_link_and_does_not_follow_it(study: Study, place: Path, home: Path) -> None:
    for name in ("report.html", "trials.csv"):
        (place / name).symlink_to(home / ".bashrc")
    write_report(study, "report.html")
    export_study(study, "trials.csv")
    assert all(path.is_file() and not path.is_symlink() for path in place.iterdir())
    assert len(list(place.iterdir())) == 2


def test_a_file_is_not_fetched_through_a_link_of_another_user(study: Study, place: Path, home: Path) -> None:
    (place / "mine").write_text("mine")
    study.artifacts().put(place / "mine")
    (place / "got").symlink_to(home)
    give_away(place / "got")
    for words in (
        ("trial", "artifact", "get", "mine", "got"),
        ("study", "export", "--to", "s.study", "--files", "got"),
    ):
        done = run(*words, "--store", "../store", "--study", "s", cwd=place)
        assert done.returncode == 1
        assert "got is a link, and belongs to" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        "study report --to got/of.html",
        "study export --to got/of.csv",
        "study export --to got/of.study",
        "study export --to sqlite:///got/of.db",
        "study export --to sqlite:///got/there.db",
        "admin spool export got/of.spool",
        "admin backup ../store got/of.backup",
    ],
)
def test_no_file_is_written_to_a_folder_behind_a_link_of_another_user(
    words: str, study: Study, place: Path, tmp_path: Path
) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "there.db").touch()
    (place / "got").symlink_to(tmp_path / "target")
    give_away(place / "got")
    options = ("--store", "../store", "--study", study.name) if words.startswith("study") else ()
    done = run(*words.split(), *options, cwd=place)
    assert done.returncode != 0, done.stdout
    assert "got is a link, and belongs to" in done.stderr
    (there,) = (tmp_path / "target").iterdir()
    assert there.stat().st_size == 0


def swapping(monkeypatch: pytest.MonkeyPatch, where: object, name: str, folder: Path, home: Path) -> None:
    """At the first call of this function, another user puts a link in the place of the folder."""
    real = getattr(where, name)

    def swapped(*words: Any, **named: Any) -> Any:
        if not folder.is_symlink():
            folder.rename(folder.with_name("moved"))
            folder.symlink_to(home)
            give_away(folder)
        return real(*words, **named)

    monkeypatch.setattr(where, name, swapped)


@pytest.mark.parametrize("own_link", [False, True])
def test_a_file_is_written_to_the_folder_that_was_named_whatever_takes_its_place(
    own_link: bool, study: Study, place: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of files are chosen by whoever stored them."""
    (place / "mine").write_text("mine")
    (place / "got").mkdir()
    if own_link:
        (place / "to").symlink_to("got")
    study.artifacts().put(place / "mine", filename="authorized_keys")
    swapping(monkeypatch, StudyArtifacts, "get", place / "got", home)
    named = "to" if own_link else "got"
    words = ["trial", "artifact", "get", "authorized_keys", named, "--store", "../store", "--study", "s"]
    assert cli_main(words) == 0
    assert (place / "moved" / "authorized_keys").read_text() == "mine"


def test_files_are_exported_to_the_folder_that_was_named_whatever_takes_its_place(
    study: Study, place: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "mine").write_text("mine")
    for _ in range(2):
        study.artifacts().put(place / "mine")
    swapping(monkeypatch, files, "replace_atomically", place / "got", home)
    export_study(study, "x.csv", files="got")
    assert [path.read_text() for path in (place / "moved").iterdir()] == ["mine"] * 2


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_of_the_files_of_an_import_only_those_in_the_folder_are_read(
    study: Study, own_place: Path, home: Path, kind: str
) -> None:
    """An export that somebody sent is unpacked with its links, which belong to the user then."""
    (own_place / "mine").write_text("mine")
    upload_artifact(artifact_store=study.artifacts(), file_path=str(own_place / "mine"), study_or_trial=study)
    export_study(study, own_place / "x.study", files=own_place / "files")
    (there,) = (own_place / "files").iterdir()
    there.unlink()
    there.symlink_to(home / ".bashrc") if kind == "link" else os.mkfifo(there)
    storage = study.storage
    imported = import_study(storage, own_place / "x.study", name="copy", files=own_place / "files")
    (warning,) = imported.warnings
    assert warning.endswith("its bytes are missing")
    with pytest.raises(NoSuchFile):
        open_study(storage, "copy").artifacts().get("mine", own_place / "got")


def test_the_spools_locks_are_made_in_the_spool_whatever_takes_its_place(
    place: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "directories", lambda: [place / "spool"])
    swapping(monkeypatch, spool, "locked", place / "spool", home)
    with spool.alone("u"):
        assert len(list((place / "moved").glob("*.lock"))) == 1


def test_a_folder_above_one_of_ours_is_no_link_of_another_user(place: Path, home: Path) -> None:
    (place / "hopaas-p2p").symlink_to(home)
    give_away(place / "hopaas-p2p")
    with pytest.raises(PermissionError, match="is a link, and belongs to"), own_folder(place / "hopaas-p2p" / "spool"):
        pass
    os.chown(place / "hopaas-p2p", os.getuid(), -1, follow_symlinks=False)
    with own_folder(place / "hopaas-p2p" / "spool") as folder:
        assert folder.samefile(home / "spool")
    (home / "spool").rmdir()


@pytest.mark.usefixtures("home")
def test_a_folder_is_opened_as_a_folder_which_lets_an_automounter_mount_it(
    place: Path, own_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With O_PATH alone, open(2) gives the empty directory on which it would be mounted."""
    (place / "link").symlink_to(own_place)
    flags = dict[str, int]()
    real = os.open

    def noted(path: Any, how: int, *more: Any, **named: Any) -> int:
        flags.setdefault(str(path), how)
        return real(path, how, *more, **named)

    monkeypatch.setattr(os, "open", noted)
    for named in (own_place, place / "link"):
        with named_folder(named) as folder:
            assert folder.samefile(own_place)
    monkeypatch.undo()
    assert flags[str(own_place)] & os.O_DIRECTORY


def test_a_file_in_the_place_of_a_folder_leaves_no_descriptor_open(place: Path) -> None:
    (place / "file").write_text("x")
    (place / "nowhere").symlink_to("gone")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for name, error in (("file", NotADirectoryError), ("nowhere", FileNotFoundError), ("gone", FileNotFoundError)):
        with pytest.raises(error), named_folder(place / name):
            pass
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_the_spool_takes_the_temporary_folder_behind_a_link_whoever_made_it(
    place: Path, own_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container without the user root, a link of root's belongs to nobody: results would be lost."""
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/nothing")
    (place / "tmp").symlink_to(own_place)
    give_away(place / "tmp")
    monkeypatch.setattr("tempfile.tempdir", str(place / "tmp"))
    monkeypatch.setattr(spool, "LASTING", str(place / "tmp"))
    path, why = keep([], store="s", study="u", name="n", trials=[])
    assert (path and path.parent.parent, why) == (own_place, "")


def test_a_lock_is_for_one_at_a_time_and_ends_with_its_holder(own_place: Path) -> None:
    with contextlib.suppress(KeyError), locked(own_place / "lock", patience=1.0):
        child = os.fork()
        if not child:
            signal.pause()
        with pytest.raises(TimeoutError), locked(own_place / "lock", patience=0.1):
            pass
        raise KeyError
    with locked(own_place / "lock", patience=0.1):
        assert stat.S_IMODE((own_place / "lock").stat().st_mode) == 0o600
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_a_draft_beside_the_files_of_others_cannot_be_replaced_by_a_link(place: Path, home: Path) -> None:
    with replace_atomically(place / "file", private=True) as draft:
        (there,) = place.iterdir()
        there.rename(place / "moved")
        there.symlink_to(home)
        draft.write_text("new")
    assert (place / "file").read_text() == "new"
    assert not (place / "file").is_symlink()


@pytest.mark.parametrize("to", ["sqlite:///x.db", "journal.log"])
def test_a_database_is_not_written_through_a_link_of_another_user(
    to: str, study: Study, place: Path, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    name = to.rpartition("/")[2]
    (place / name).symlink_to(target)
    give_away(place / name)
    with pytest.raises(InvalidInput, match=f"{name} is a link, and belongs to nobody"):
        export_study(study, to)
    assert not target.exists()
    os.chown(place / name, os.getuid(), -1, follow_symlinks=False)
    target.touch()
    export_study(study, to)
    assert target.stat().st_size > 0


@pytest.mark.parametrize("to", ["sqlite:///x.db", "journal.log"])
@pytest.mark.parametrize("below", [".", "mine"])
def test_a_database_that_others_could_replace_by_a_link_is_not_changed(
    to: str, below: str, study: Study, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / below).mkdir(exist_ok=True)
    monkeypatch.chdir(place / below)
    export_study(study, to)
    before = Path(to.rpartition("/")[2]).read_bytes()
    with pytest.raises(InvalidInput, match=r"others may write to .*shared .*a link\. Remove it, or name another file"):
        export_study(study, to)
    assert Path(to.rpartition("/")[2]).read_bytes() == before


@pytest.mark.parametrize("to", ["sqlite:///x.db", "journal.log"])
def test_a_new_database_is_written_beside_no_file_of_others_and_is_whole(
    to: str, study: Study, place: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = to.rpartition("/")[2]
    study.ask()
    for used in (RDBStorage, JournalStorage):
        begin = used.create_new_trial

        def planted(*words: Any, begin: Callable[..., int] = begin, **named: Any) -> int:
            assert not os.path.lexists(place / name)
            (place / name).symlink_to(home / ".bashrc")
            return begin(*words, **named)

        monkeypatch.setattr(used, "create_new_trial", planted)
    export_study(study, to)
    assert not (place / name).is_symlink()
    assert [path.name for path in place.iterdir()] == [name]


def test_the_spool_is_not_read_in_the_place_of_a_link(
    place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(spool, "directories", lambda: [place / "spool"])
    (place / "spool").symlink_to(tmp_path)
    path, why = keep([], store="s", study="u", name="n", trials=[])
    assert path is None
    assert "is a link" in why
    assert list(spool.waiting()) == []


# --- the rule itself -------------------------------------------------------------------------------------------------


def test_a_folder_that_others_may_write_to_says_how_to_close_it(own_place: Path) -> None:
    (own_place / "open").mkdir()
    (own_place / "open").chmod(0o777)
    with pytest.raises(PermissionError, match=r"chmod go-w .*open"), own_folder(own_place / "open"):
        pass


def test_a_folder_is_made_with_those_above_it_and_held_while_it_moves(own_place: Path) -> None:
    with own_folder(own_place / "a" / "b", "c") as folder:
        (own_place / "a").rename(own_place / "moved")
        (folder / "file").write_text("x")
    assert (own_place / "moved" / "b" / "c" / "file").read_text() == "x"
    assert stat.S_IMODE((own_place / "moved" / "b" / "c").stat().st_mode) == 0o700


def test_a_file_of_another_user_is_read_but_not_written_to(place: Path) -> None:
    (place / "file").touch(mode=0o666)
    give_away(place / "file")
    os.close(open_regular(place / "file"))
    with pytest.raises(OSError, match="belongs to somebody else"):
        open_regular(place / "file", os.O_WRONLY)


def test_nobody_finds_a_study_whose_logs_go_to_the_folder_of_another() -> None:
    """A name that is not a folder's has a digest at its end, and a search for a second name with the same takes for
    ever."""
    names = [f"{'x' * 60}/{at}" for at in range(1000)]
    digests = {_as_folder(name).rpartition("-")[2] for name in names}
    assert len(digests) == len(names)
    assert {len(one) for one in digests} == {32}


def test_the_folder_of_a_study_fits_a_file_system_whatever_its_letters_are(tmp_path: Path) -> None:
    for letter in ("x", "é", "学", "\N{MATHEMATICAL BOLD CAPITAL A}"):
        (tmp_path / _as_folder(letter * 100)).mkdir()
