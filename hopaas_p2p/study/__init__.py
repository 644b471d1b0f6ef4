"""What people import: `open_study`, and the Study it gives.

A Study is Optuna's study on our storage, plus what a campaign of many processes needs: a budget that is exact over
all of them, pause and stop, and trials that are released, failed or completed whatever ends the code that runs them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import optuna
from optuna.exceptions import DuplicatedStudyError
from optuna.trial import FrozenTrial

from hopaas_p2p.artifacts import StudyArtifacts
from hopaas_p2p.core.records import StudyDefine
from hopaas_p2p.errors import NoSuchStudy, NoSuchTrial
from hopaas_p2p.interrupts import describe
from hopaas_p2p.storage import Storage, open_storage
from hopaas_p2p.study.control import Control
from hopaas_p2p.study.definition import Given, Space, compare, made_with
from hopaas_p2p.study.optimizing import Optimizing
from hopaas_p2p.study.shown import Shown

if TYPE_CHECKING:
    import pandas as pd

    from hopaas_p2p.trackers import Followers, MLflow, Registered, Tracker


def open_study(
    store: str | os.PathLike[str] | Storage,
    name: str,
    *,
    space: Space | None = None,
    direction: str = "minimize",
    directions: Sequence[str] | None = None,
    sampler: optuna.samplers.BaseSampler | None = None,
    pruner: optuna.pruners.BasePruner | None = None,
    budget: int | None = None,
    attempts: int | None = None,
    max_failures: int | None = None,
    lease_ttl: float | None = None,
    progress_timeout: float | None = None,
    interrupted: str | None = None,
    create: bool = True,
    trackers: Sequence[str | Tracker] = (),
    **storage_options: Any,
) -> Study:
    """Create the study, or join it if it is there: every process makes the same call.

    Args:
        store: a directory or URL that all processes reach, or a storage from `open_storage`, which several studies of
            this process then share: one peer, one connection.
        name: the study's name in that store.
        space: parameter -> distribution (ours or Optuna's). With it, `trial.params` are all there at `ask`; without,
            the objective suggests as it goes. A joiner may leave it out.
        direction: "minimize" or "maximize"; `directions` for several objectives.
        sampler: Optuna's, of this process alone; it is not stored.
        pruner: the same.
        budget: COMPLETE + PRUNED trials wanted over all processes, exactly. None: no end.
        attempts: how often one set of parameters may be started when its peers die or are pre-empted; 3 if not said.
        max_failures: failures in a row, over all processes, that end the campaign. None: never.
        lease_ttl: seconds of silence after which a peer's trial is taken over; 120 if not said.
        progress_timeout: seconds without a report after which a live trial is asked to stop, and after as many more
            reclaimed. None: never.
        interrupted: what becomes of a trial whose attempts are used up: "fail" (its place is given back), or "prune"
            at its last report.
        create: False joins only.
        trackers: where else the study shall be seen: "mlflow", "wandb", or those of `hopaas_p2p.trackers`. All peers
            may say the same; one of them exports for all, in a thread of its own. Call `close` in the end.
        storage_options: passed on to `open_storage`.

    Raises:
        DefinitionMismatch: the study exists and differs from what was given; the message shows where.
        NoSuchStudy: it does not exist, and `create` is False.
        ConfigurationError: the store cannot be used.
    """
    storage = store if isinstance(store, Storage) else open_storage(store, create=create, **storage_options)
    if directions is None and direction != "minimize":
        directions = (direction,)
    given = Given(
        directions=None if directions is None else tuple(directions),
        space=space,
        budget=budget,
        attempts=attempts,
        lease_ttl=lease_ttl,
        max_failures=max_failures,
        progress_timeout=progress_timeout,
        interrupted=interrupted,
    )
    wanted = given.definition(name, made_with(sampler, pruner))
    study_id = _join_or_create(storage, wanted, create=create)
    compare(storage, study_id, wanted, given.said())
    study = Study(storage, study_id, name, sampler=sampler, pruner=pruner)
    if trackers:
        study._follow(trackers)
    return study


def _join_or_create(storage: Storage, wanted: StudyDefine, *, create: bool) -> int:
    with contextlib.suppress(KeyError):
        return storage.get_study_id_from_name(wanted.name)
    if not create:
        raise NoSuchStudy(f"there is no study {wanted.name!r} in {storage.url}; see: hopaas-p2p study list")
    with contextlib.suppress(DuplicatedStudyError):  # somebody was quicker: join theirs
        return storage.define_study(wanted)
    return storage.get_study_id_from_name(wanted.name)


class Study(Optimizing, Control, Shown):
    """A study as this process takes part in it. Get one from `open_study`. Methods may be called from any thread."""

    def __init__(
        self,
        storage: Storage,
        study_id: int,
        name: str,
        *,
        sampler: optuna.samplers.BaseSampler | None = None,
        pruner: optuna.pruners.BasePruner | None = None,
    ) -> None:
        self.storage = storage
        self.name = name
        self.study_id = study_id
        self.optuna = optuna.load_study(study_name=name, storage=storage, sampler=sampler, pruner=pruner)
        """The same study as Optuna's own object."""
        self._pid = os.getpid()
        self._followers: Followers | None = None

    def __repr__(self) -> str:
        return f"hopaas_p2p.open_study({self.storage.url!r}, {self.name!r})"

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials of all peers, by number. Shared: not to be changed."""
        return self.storage.get_all_trials(self.study_id, deepcopy=False)

    @property
    def best_trial(self) -> FrozenTrial:
        """The best COMPLETE trial; ValueError when there is none yet."""
        return self.optuna.best_trial

    def trials_dataframe(self, **options: Any) -> pd.DataFrame:
        """Optuna's table of all trials, with `attempt`, `owner`, `site` and `host` beside it. Needs pandas."""
        try:
            frame = self.optuna.trials_dataframe(**options)
        except ImportError:
            raise ImportError("trials_dataframe needs pandas: pip install pandas") from None
        state = self.state
        rows = state.trials[: len(frame)]
        frame["attempt"] = [trial.attempt for trial in rows]
        frame["owner"] = [trial.owner for trial in rows]
        for what in ("site", "host"):
            frame[what] = [state.peers.get(trial.owner or "", {}).get(what) for trial in rows]
        return frame

    def provenance(self, number: int) -> dict[str, str]:
        """Where and with what a trial ran: host, site, user, pid, batch job, GPU, git commit, package versions."""
        state = self.state
        if not 0 <= number < len(state.trials):
            raise NoSuchTrial(f"the study {self.name!r} has no trial {number}")
        return state.peers.get(state.trials[number].owner or "", {})

    def artifacts(self) -> StudyArtifacts:
        """The files of this study and its trials; also an artifact store for Optuna and optuna-dashboard."""
        return StudyArtifacts(self.storage, self.study_id)

    def register_best(
        self, model_artifact: str | os.PathLike[str], name: str, *, tracker: MLflow | str | None = None
    ) -> Registered:
        """Put the best trial's model into MLflow's registry: see `hopaas_p2p.trackers.register_best`."""
        from hopaas_p2p.trackers import register_best

        return register_best(self, model_artifact, name, tracker=tracker)

    def _follow(self, trackers: Sequence[str | Tracker]) -> None:
        from hopaas_p2p.trackers import Followers

        self._followers = Followers(self, trackers)

    def close(self) -> None:
        """Send what is queued and let go of the store; with trackers, the last of it goes there first, for 30 s."""
        if self._followers is not None:
            self._followers.close()
        self.storage.close()


__all__ = ["Space", "Study", "describe", "open_study"]
