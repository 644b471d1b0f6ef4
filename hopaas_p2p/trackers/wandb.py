"""Studies in Weights & Biases: a group named like the study, with a run for the study and a run for each trial in it.

    hopaas-p2p export wandb digits --project tuning              # to the server that W&B's variables say
    hopaas-p2p export wandb digits --project tuning --offline    # into ./wandb, for `wandb sync` later

W&B has no nested runs; a group is its nearest word. A run's id is made of the study's uuid and the trial's number, so
no export makes a second run of a trial, wherever it runs. What was sent already stands in a *ledger*, one file beside
W&B's own; a ledger that is lost is made anew from the server. Needs wandb: pip install 'hopaas-p2p[wandb]'.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hopaas_p2p.errors import ConfigurationError
from hopaas_p2p.trackers.base import TrackerUnreachable
from hopaas_p2p.trackers.view import StudyView, TrialView

if TYPE_CHECKING:
    from hopaas_p2p.artifacts import Artifact, StudyArtifacts

_OFFLINE: Final = "offline"
_STUDY: Final = "study"  # the ledger's entry of the study's own run
_PROJECT: Final = "hopaas"
_EXIT: Final = {"COMPLETE": 0, "PRUNED": 0, "FAIL": 1}
_LONGEST_LABEL: Final = 64


class WandB:
    """Weights & Biases: its server, or its offline files.

    Args:
        project: its name; WANDB_PROJECT, else "hopaas", if not said.
        entity: the team or user; W&B's own default if not said.
        offline: write files for `wandb sync`; as WANDB_MODE says if None.
        directory: where W&B's directory `wandb` is, with the ledger in it; WANDB_DIR, else here.

    """

    name = "wandb"

    def __init__(
        self,
        project: str | None = None,
        *,
        entity: str | None = None,
        offline: bool | None = None,
        directory: str | os.PathLike[str] | None = None,
    ) -> None:
        env = os.environ
        self.project = project or env.get("WANDB_PROJECT") or _PROJECT
        self.entity = entity or env.get("WANDB_ENTITY")
        self.offline = env.get("WANDB_MODE") == _OFFLINE if offline is None else offline
        self.directory = Path(directory or env.get("WANDB_DIR") or ".")
        self._group = ""
        self._uuid = ""
        self._ledger: dict[str, dict[str, Any]] = {}
        """Trial, or the study -> what its run has: mark, last step, ids of files, offline directories."""
        self._open: dict[str, Any] = {}
        """Runs of W&B's that are open: the study's, and those of running trials."""

    def __repr__(self) -> str:
        return f"WandB({self.project!r}, offline={self.offline})"

    @property
    def place(self) -> str:
        return f"{self.entity or ''}/{self.project} {self.directory.absolute() if self.offline else ''}".strip()

    # --- the tracker ---

    def begin(self, study: StudyView) -> dict[int, str]:
        if not self.offline and not _has_key():
            raise ConfigurationError(
                "W&B has no key: run `wandb login`, set WANDB_API_KEY, or go offline (in a shell: --offline)"
            )
        self._close_runs()
        self._uuid, self._group = study.uuid, study.name
        self._ledger = self._read_ledger()
        if not self._ledger and not self.offline:
            with self._translated():
                self._ledger = dict(self._ask_server())
        return {int(name): entry.get("mark", "") for name, entry in self._ledger.items() if name != _STUDY}

    def put(self, trial: TrialView, files: StudyArtifacts) -> None:
        if trial.state == "WAITING":  # a run begins when somebody runs it
            return
        with self._translated():
            key = str(trial.number)
            run = self._run(key, f"trial {trial.number}", trial.params, _labels(trial), trial.note)
            entry = self._ledger.setdefault(key, {})
            last = entry.get("step", -1)
            for step, value in trial.reports.items():
                if step > last:
                    run.log({"report": value}, step=step, commit=True)
            run.config.update({"hopaas": trial.tags}, allow_val_change=True)
            run.summary.update({**trial.values, "state": trial.state, "hopaas_mark": trial.mark})
            self._upload(run, entry, trial.files, files)
            entry.update(step=max(trial.reports, default=last))
            if trial.final:
                run.finish(exit_code=_EXIT[trial.state])
                del self._open[key]
            entry.update(mark=trial.mark, parts=self._parts(key))
            self._write_ledger()

    def put_study(self, study: StudyView, files: StudyArtifacts) -> None:
        entry = self._ledger.setdefault(_STUDY, {})
        mark = study.mark
        if entry.get("mark") == mark:
            return
        with self._translated():
            run = self._run(_STUDY, study.name, study.params, (f"state:{study.state}",), study.note)
            last = entry.get("step", -1)
            for number, value in study.best:
                if number > last:
                    run.log({"best_value": value}, step=number, commit=True)
            run.config.update({"hopaas": study.tags}, allow_val_change=True)
            counts = {f"trials_{word.lower()}": count for word, count in study.counts.items()}
            run.summary.update({**counts, "state": study.state, "hopaas_mark": mark})
            self._upload(run, entry, study.files, files)
            entry.update(step=max((number for number, _ in study.best), default=last))
            if study.final:
                run.finish()
                del self._open[_STUDY]
            entry.update(mark=mark, parts=self._parts(_STUDY))
            self._write_ledger()

    def link(self) -> str:
        if self.offline:
            return str(self._place)
        base = os.environ.get("WANDB_BASE_URL", "https://wandb.ai").rstrip("/")
        return f"{base}/{self.entity or '-'}/{self.project}/groups/{self._group}"

    def close(self) -> None:
        """End the runs that are open; those of running trials are resumed by the next export."""
        with contextlib.suppress(TrackerUnreachable):
            self._close_runs()

    # --- how ---

    @property
    def _place(self) -> Path:
        return self.directory / "wandb"

    @property
    def _ledger_file(self) -> Path:
        return self._place / f"hopaas-{self._uuid}-{'offline' if self.offline else 'online'}.json"

    def _read_ledger(self) -> dict[str, dict[str, Any]]:
        try:
            found = json.loads(self._ledger_file.read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return {name: dict(entry) for name, entry in found.items()}

    def _write_ledger(self) -> None:
        self._place.mkdir(parents=True, exist_ok=True)
        draft = self._ledger_file.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps(self._ledger))
        draft.replace(self._ledger_file)

    def _ask_server(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """What the server has of this study, as the ledger would say it."""
        path = f"{self.entity}/{self.project}" if self.entity else self.project
        for run in _module().Api().runs(path, filters={"group": self._group}, lazy=False):
            prefix, _, key = run.id.partition("-")
            if prefix == self._uuid:
                summary = run.summary
                yield key, {"mark": summary.get("hopaas_mark", ""), "step": summary.get("_step", -1)}

    def _run(self, key: str, name: str, params: dict[str, Any], labels: tuple[str, ...], note: str) -> Any:
        if key in self._open:
            return self._open[key]
        wandb = _module()
        self._place.mkdir(parents=True, exist_ok=True)
        if self.offline:
            self._remove_orphans(key)
        quiet = wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,  # what would be told of this process is no news of the one that ran the trial
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
            dir=str(self.directory.absolute()),  # a relative one is lost on the way to its service
            entity=self.entity,
            project=self.project,
            group=self._group,
            job_type="study" if key == _STUDY else "trial",
            name=name,
            config=params,
            tags=list(labels),
            notes=note or None,
            settings=quiet,
        )
        return self._open[key]

    def _parts(self, key: str) -> list[str]:
        """W&B's offline directories of one run."""
        return sorted(path.name for path in self._place.glob(f"offline-run-*-{self._uuid}-{key}"))

    def _remove_orphans(self, key: str) -> None:
        """What an export wrote that ended before its ledger did: all of that is written again."""
        kept = self._ledger.get(key, {}).get("parts", [])
        for name in self._parts(key):
            if name not in kept:
                shutil.rmtree(self._place / name)
        while kept and self._place.joinpath(time.strftime(f"offline-run-%Y%m%d_%H%M%S-{self._uuid}-{key}")).exists():
            time.sleep(0.05)  # W&B would write over what it wrote within the same second

    def _upload(self, run: Any, entry: dict[str, Any], wanted: tuple[Artifact, ...], files: StudyArtifacts) -> None:
        there = entry.setdefault("files", [])
        for one in wanted:
            if one.id in there:
                continue
            with tempfile.TemporaryDirectory(prefix="hopaas-wandb-") as directory:
                path = files.get(one, Path(directory, one.filename))
                artifact = _module().Artifact(f"{run.id}-{one.id[-8:]}", type="file")
                artifact.add_file(str(path), name=one.filename)
                run.log_artifact(artifact)
            there.append(one.id)

    def _close_runs(self) -> None:
        with self._translated():
            for run in self._open.values():
                run.finish()
        self._open.clear()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """W&B's errors in our words."""
        import requests

        wandb = _module()
        try:
            yield
        except (wandb.Error, requests.RequestException, OSError) as error:
            self._open.clear()  # they are found again by their ids
            self._ledger = {}
            raise TrackerUnreachable(f"W&B: {type(error).__name__}: {str(error).splitlines()[0][:200]}") from None


def _module() -> Any:
    try:
        import wandb
    except ImportError:
        raise ConfigurationError("W&B is not installed: pip install 'hopaas-p2p[wandb]'") from None
    return wandb


def _has_key() -> bool:
    """Whether W&B knows who we are; it would ask on the terminal, in the middle of a training."""
    import netrc
    from urllib.parse import urlsplit

    settings = _module().setup().settings
    if settings.api_key or settings.identity_token_file:
        return True
    file = os.environ.get("NETRC") or Path("~/.netrc").expanduser()
    try:
        return netrc.netrc(str(file)).authenticators(urlsplit(settings.base_url).hostname or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _labels(trial: TrialView) -> tuple[str, ...]:
    """W&B's tags: short words to filter by."""
    said = [("state", trial.state), ("site", trial.tags.get("site")), ("node", trial.tags.get("node"))]
    return tuple(f"{name}:{value}"[:_LONGEST_LABEL] for name, value in said if value)
