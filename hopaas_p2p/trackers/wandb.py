"""Exports studies to Weights & Biases, as a group with the study's name, a run for the study, and one for each trial.

    hopaas-p2p study export digits --format wandb --to tuning    # to the server in W&B's variables
    WANDB_MODE=offline hopaas-p2p study export digits …          # into ./wandb, for `wandb sync` later

W&B has no nested runs; a group is the closest equivalent. A run's id consists of the study's uuid and the trial's
number, so no export creates a second run of a trial. The *ledger*, a file in W&B's directory, lists the data already
sent. If the ledger is lost, it is rebuilt from the server. Needs wandb.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hopaas_p2p.errors import ConfigurationError, explained
from hopaas_p2p.runtime import credentials, extras
from hopaas_p2p.runtime.atomic import read_regular, replace_atomically
from hopaas_p2p.runtime.ownership import own_folder
from hopaas_p2p.trackers.base import TrackerUnreachable, first_line, new_files
from hopaas_p2p.trackers.view import STUDY, RunView

if TYPE_CHECKING:
    from hopaas_p2p.files.artifacts import StudyArtifacts

_OFFLINE: Final = "offline"
_EXIT: Final = {"COMPLETE": 0, "PRUNED": 0, "FAIL": 1}
_LONGEST_LABEL: Final = 64
_LARGEST_LEDGER: Final = 256 << 20
_KEY: Final = re.compile(rf"{STUDY}|[0-9]{{1,9}}")
"""The part of a run's id after the study's uuid."""


class WandB:
    """Weights & Biases, as a server or as offline files.

    Args:
        project: the project's name, or "team/name"; by default WANDB_ENTITY and WANDB_PROJECT, else "hopaas".

    With WANDB_MODE=offline, the export writes files for `wandb sync`. WANDB_DIR names the parent of W&B's directory
    `wandb`, which holds the ledger; by default the current directory.
    """

    name = "wandb"

    def __init__(self, project: str | None = None) -> None:
        env = os.environ
        team, _, name = (project or "").rpartition("/")
        self.project = name or env.get("WANDB_PROJECT") or "hopaas"
        self.entity = team or env.get("WANDB_ENTITY")
        self.project_path = f"{self.entity}/{self.project}" if self.entity else self.project
        self.offline = env.get("WANDB_MODE") == _OFFLINE
        self._parent = Path(env.get("WANDB_DIR") or ".")
        self._directory = self._parent / "wandb"
        self._group = ""
        self._uuid = ""
        self._ledger: dict[str, dict[str, Any]] = {}
        """Trial number, or `STUDY` -> the run's mark, last step, ids of files, and offline directories."""
        self._open: dict[str, Any] = {}
        """The open W&B runs of the study and of running trials."""

    def __repr__(self) -> str:
        return f"WandB({self.project!r}, offline={self.offline})"

    @property
    def place(self) -> str:
        return f"{self.entity or ''}/{self.project} {self._parent.absolute() if self.offline else ''}".strip()

    def begin(self, study: RunView) -> dict[int | None, str]:
        what, cure = f"W&B's files cannot be kept in {self._directory}", ". Set WANDB_DIR to a directory of your own"
        with explained(what, cure), own_folder(self._directory, mode=0o755):
            pass
        if not self.offline and not _has_key():
            raise ConfigurationError(
                "W&B has no key. Run `wandb login`, set WANDB_API_KEY, or work offline (WANDB_MODE=offline)"
            )
        self._close_runs()
        self._uuid, self._group = study.tags[STUDY], study.name
        self._ledger = {}
        with contextlib.suppress(FileNotFoundError, ValueError):
            self._ledger = json.loads(read_regular(self._ledger_file, limit=_LARGEST_LEDGER, named=True))
        other = self._ledger.get(STUDY, {}).get("project", self.project_path)
        if other != self.project_path:
            raise ConfigurationError(
                f"according to {self._directory}, this study's runs were already exported, to the project {other}. "
                f"To export them to {self.project_path}, set WANDB_DIR to another directory"
            )
        if not self._ledger and not self.offline:
            with self._translated():
                self._ledger = dict(self._ask_server())
        return {None if key == STUDY else int(key): one.get("mark", "") for key, one in self._ledger.items()}

    def put(self, view: RunView, files: StudyArtifacts) -> bool:
        """Send the data that the run lacks, and finish the run once it is complete."""
        if view.state == "WAITING":  # a trial's run begins when the trial does
            return False
        with self._translated():
            key = STUDY if view.number is None else str(view.number)
            run = self._run(key, view)
            entry = self._ledger.setdefault(key, {})
            last = entry.get("step", -1)
            rows: dict[int, dict[str, float]] = {}
            for name, by_step in view.series.items():
                for step, value in by_step.items():
                    if step > last:  # W&B accepts a step only once
                        rows.setdefault(step, {})[name] = value
            for step in sorted(rows):
                run.log(rows[step], step=step, commit=True)
            entry["step"] = max(rows, default=last)
            run.config.update({"hopaas": view.tags}, allow_val_change=True)
            run.summary.update({**view.values, "state": view.state, "hopaas_mark": view.mark})
            there = entry.setdefault("files", [])
            for one, path in new_files(view, there, files):
                artifact = _module().Artifact(f"{run.id}-{one.id[-8:]}", type="file")
                artifact.add_file(str(path), name=one.filename)
                run.log_artifact(artifact)
                there.append(one.id)
            if view.final:
                run.finish(exit_code=_EXIT.get(view.state))
                del self._open[key]
            entry.update(mark=view.mark, project=self.project_path, parts=self._parts(key))
            with replace_atomically(self._ledger_file) as draft:
                draft.write_text(json.dumps(self._ledger))
        return True

    def link(self) -> str:
        if self.offline:
            return str(self._directory)
        base = os.environ.get("WANDB_BASE_URL", "https://wandb.ai").rstrip("/")
        return f"{base}/{self.entity or '-'}/{self.project}/groups/{self._group}"

    def close(self) -> None:
        """Finish the open runs. The next export resumes the runs of running trials."""
        with contextlib.suppress(TrackerUnreachable):
            self._close_runs()

    @property
    def _ledger_file(self) -> Path:
        return self._directory / f"hopaas-{self._uuid}-{'offline' if self.offline else 'online'}.json"

    def _ask_server(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The server's runs of this study, as entries of the ledger."""
        for run in _module().Api().runs(self.project_path, filters={"group": self._group}, lazy=False):
            prefix, _, key = run.id.partition("-")
            if prefix == self._uuid and _KEY.fullmatch(key):  # another user of the server may have created other runs
                mark, step = run.summary.get("hopaas_mark", ""), run.summary.get("_step", -1)
                yield key, {"mark": str(mark), "step": step if isinstance(step, int) else -1}

    def _run(self, key: str, view: RunView) -> Any:
        if key in self._open:
            return self._open[key]
        wandb = _module()
        if self.offline:
            self._remove_orphans(key)
        labels = [("state", view.state), ("site", view.tags.get("site")), ("node", view.tags.get("node"))]
        quiet = wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,  # git would describe this process and not the one that ran the trial
            disable_code=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_save_requirements=False,
        )
        self._open[key] = wandb.init(
            id=f"{self._uuid}-{key}",
            resume="allow",
            reinit="create_new",
            mode=_OFFLINE if self.offline else "online",
            dir=str(self._parent.absolute()),  # W&B's service process has another working directory
            entity=self.entity,
            project=self.project,
            group=self._group,
            job_type="study" if key == STUDY else "trial",
            name=view.name,
            config=view.params,
            tags=[f"{name}:{value}"[:_LONGEST_LABEL] for name, value in labels if value],
            notes=view.note or None,
            settings=quiet,
        )
        return self._open[key]

    def _parts(self, key: str) -> list[str]:
        """W&B's offline directories of one run."""
        return sorted(path.name for path in self._directory.glob(f"offline-run-*-{self._uuid}-{key}"))

    def _remove_orphans(self, key: str) -> None:
        """Remove files of an export that ended before its ledger was written; they are exported again."""
        kept = self._ledger.get(key, {}).get("parts", [])
        for name in self._parts(key):
            if name not in kept:
                shutil.rmtree(self._directory / name)
        name_now = f"offline-run-%Y%m%d_%H%M%S-{self._uuid}-{key}"
        while kept and self._directory.joinpath(time.strftime(name_now)).exists():
            time.sleep(0.05)  # W&B would overwrite a directory that it wrote within the same second

    def _close_runs(self) -> None:
        with self._translated():
            for run in self._open.values():
                run.finish()
        self._open.clear()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Raise our errors in place of W&B's."""
        import requests

        wandb = _module()
        try:
            yield
        except (wandb.Error, requests.RequestException, OSError) as error:
            self._open.clear()  # found again by their ids
            self._ledger = {}
            raise TrackerUnreachable(f"W&B: {type(error).__name__}: {first_line(error)}") from None


def _module() -> Any:
    try:
        import wandb
    except ImportError:
        raise ConfigurationError(f"W&B is not installed: {extras.install('wandb')}") from None
    return wandb


def _has_key() -> bool:
    """Whether W&B has a key. Without a key, W&B would prompt on the terminal in the middle of a training run.

    Raises:
        ConfigurationError: a file of this directory would name the server that gets the key.

    """
    for folder in (Path.cwd(), Path(os.environ.get("WANDB_DIR", "")).absolute()):
        for name in ("wandb", ".wandb"):  # both, because W&B's settings need not show which file it has read
            credentials.check_wandb(folder / name / "settings")
    settings = _module().setup().settings
    return bool(settings.api_key or settings.identity_token_file) or credentials.has_netrc_login(settings.base_url)
