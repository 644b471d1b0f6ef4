"""A study as in the original, with a title, constants and suggestions. The same set-up joins the same study."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

from hopaas_p2p.core.records import Distribution, StudySet
from hopaas_p2p.errors import HopaasError as OwnError
from hopaas_p2p.errors import InvalidInput, LeaseLost, NoSuchStudy, NoWork
from hopaas_p2p.hopaas.client import Client
from hopaas_p2p.hopaas.exceptions import HopaasConsistencyError, translated, translation
from hopaas_p2p.hopaas.pruners import NopPruner
from hopaas_p2p.hopaas.samplers import TPESampler
from hopaas_p2p.hopaas.setup import NamedArguments
from hopaas_p2p.hopaas.suggestions import PREFIX, parse
from hopaas_p2p.hopaas.trial import FailedTrial, FrozenTrial, Trial
from hopaas_p2p.runtime.interrupts import TERMINATIONS
from hopaas_p2p.runtime.logs import LOG

if TYPE_CHECKING:
    import optuna

    import hopaas_p2p

_TERMINATED: Final = [128 + number for number in TERMINATIONS]  # by these exit codes, `Study.trial` knows the signal


class Study:
    """A study, joined at its first trial. Methods may be called from any thread, and after a fork.

    Args:
        name: a title for people.
        properties: name -> suggestions (or strings such as `optuna#…`) and constants, which every trial repeats.
        special_properties: facts about this job (its node, its address). They are stored with each trial, but are not
            part of the set-up.
        direction: "minimize" or "maximize".
        pruner: a pruner of `hopaas_p2p.hopaas.pruners`.
        sampler: a sampler of `hopaas_p2p.hopaas.samplers`.
        client: the store of the study; by default `Client()`.

    Raises:
        ValueError: an argument is not allowed; the message says which.

    """

    def __init__(
        self,
        name: str,
        properties: Mapping[str, Any],
        special_properties: Mapping[str, Any] | None = None,
        direction: str = "minimize",
        pruner: NamedArguments | None = None,
        sampler: NamedArguments | None = None,
        client: Client | None = None,
    ) -> None:
        self._name = name
        given = _checked(properties, "properties")
        self._order = tuple(given)
        texts = {key: parse(one) for key, one in given.items() if isinstance(one, str) and one.startswith(PREFIX)}
        self._space = {key: _range(key, one) for key, one in (given | texts).items() if isinstance(one, Distribution)}
        self._constants = _plain({key: one for key, one in given.items() if key not in self._space})
        self.special_properties: Final = _plain(_checked(special_properties or {}, "special_properties"))
        """Facts about this job that are stored with each trial."""
        if direction not in ("minimize", "maximize"):
            raise InvalidInput(f"direction must be 'minimize' or 'maximize', not {direction!r}")
        self.direction: Final = direction
        """'minimize' or 'maximize'."""
        self._pruner, self._sampler = pruner or NopPruner(), sampler or TPESampler()
        try:
            self._made_pruner, self._made_sampler = self._pruner.make(), self._sampler.make()
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"{self._pruner.name}, {self._sampler.name}: {error}") from None
        self._client = client if client is not None else Client()
        self._joined: hopaas_p2p.Study | None = None
        self.setup_id: Final = self._fingerprint()
        """The digest of the set-up, which is the study's id once it is joined."""
        title = "".join("-" if letter in "/\\" or not letter.isprintable() else letter for letter in name)
        self.store_name: Final = f"{title[:100]}-{self.setup_id[:8]}"
        """The study's name in the store. It consists of the title, turned into a valid name, and the beginning of the
        id."""

    def _fingerprint(self) -> str:
        """A digest of the set-up. It is the same in every process, and does not depend on the order or spelling of the
        arguments.
        """
        space = {name: [type(one).__name__, *msgspec.to_builtins(one)] for name, one in self._space.items()}
        setup = {
            "name": self._name,
            "properties": {"constants": self._constants, "space": space},
            "direction": self.direction,
            "sampler": {"name": self._sampler.name, "args": self._sampler.args},
            "pruner": {"name": self._pruner.name, "args": self._pruner.args},
        }
        return hashlib.sha256(json.dumps(setup, sort_keys=True).encode()).hexdigest()

    def __repr__(self) -> str:
        return f"hopaas.Study({self.store_name!r}, client={self._client!r})"

    @property
    def is_initialized(self) -> bool:
        """Whether this process has joined the study, by running or reading a trial."""
        return self._joined is not None

    @property
    def study_id(self) -> str | None:
        """The digest of the set-up, the same in every process; None before the study is joined."""
        return self.setup_id if self.is_initialized else None

    @property
    def best_trial_id(self) -> int:
        """The id of the best trial of all processes.

        Raises:
            HopaasConsistencyError: the study has no trials yet, or none is complete.

        """
        study = self._existing()
        if study is None:
            raise HopaasConsistencyError(f"{self._name!r} has no trials yet; start one with study.trial()")
        try:
            with translated():
                return study.best_trial.number
        except ValueError:
            raise HopaasConsistencyError("no trial is complete yet") from None

    @property
    def trials(self) -> dict[int, FrozenTrial]:
        """The trials of all processes by id; empty while the study does not exist."""
        study = self._existing()
        with translated():
            trials = study.trials if study is not None else []
        return {
            one.number: FrozenTrial(self.setup_id, one.number, _loss(one), self.values(one.params), one.state.name)
            for one in trials
        }

    def values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Parameters and constants, in the order of the script's `properties`."""
        values = {**self._constants, **params}
        return {name: values[name] for name in self._order if name in values}

    @contextlib.contextmanager
    def trial(self) -> Iterator[Trial]:
        """`with study.trial() as trial:` starts a trial and ends it, however the block ends.

        The last loss that was set is the result. The trial fails, with the reason, if there is no loss, if the loss is
        None or NaN, or if the block raises an exception or calls `sys.exit`. SIGTERM and Ctrl-C return the trial, to be
        run again. Exceptions and signals propagate.

        Raises:
            NoMoreTrials: the study starts no more trials; a script that does not catch this ends with exit code 0.
            HopaasServerError: the store cannot be reached.

        """
        stopped: BaseException | None = None
        try:
            with self.join().trial() as inner:
                trial = Trial(inner, self.values(inner.params), self.special_properties)
                try:
                    yield trial
                except BaseException as error:
                    stopped = error
                    if isinstance(error, SystemExit) and error.code not in _TERMINATED:
                        raise FailedTrial(f"the script called sys.exit({error.code!r})") from error
                    raise
                finally:
                    trial._ended = True
                trial._conclude()
        except (FailedTrial, OwnError) as error:
            if error is stopped:
                raise
            if isinstance(error, FailedTrial | LeaseLost | NoWork):  # when no work is left, the script should show why
                LOG.warning("%s%s", f"trial {trial.id} fails: " if isinstance(error, FailedTrial) else "", error)
            if not isinstance(error, FailedTrial | LeaseLost):
                raise translation(error) from error
            if stopped is not None:
                raise stopped from None

    def _existing(self) -> hopaas_p2p.Study | None:
        """The study in its store; None if it does not exist yet."""
        with translated(), contextlib.suppress(NoSuchStudy):
            return self.join(create=False)
        return None

    def join(self, *, create: bool = True) -> hopaas_p2p.Study:
        """Open the study in its store; unless `create` is false, create it if it does not exist.

        Raises:
            hopaas_p2p.errors.HopaasError: the store cannot be used, or the study does not exist.

        """
        from hopaas_p2p.study import open_study

        if self._joined is None:
            study = open_study(
                self._client.storage(),
                self.store_name,
                space=self._space,
                directions=self.direction,
                sampler=self._made_sampler,
                pruner=self._made_pruner,
                create=create,
            )
            missing = {key: json.dumps(one) for key, one in self._constants.items() if key not in study.state.user}
            if missing:
                study.handle.say(StudySet(user=missing))
            self._joined = study
        return self._joined


def _loss(trial: optuna.trial.FrozenTrial) -> float | None:
    """The result, or else the last report of a running or pruned trial; None for a failed trial."""
    reports = trial.intermediate_values
    if trial.value is not None or not reports or trial.state.name == "FAIL":
        return trial.value
    return reports[max(reports)]


def _checked(given: Mapping[str, Any], what: str) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise InvalidInput(f"{what} is a dictionary of values by name, not {type(given).__name__}")
    return {str(key).removeprefix("_"): value for key, value in given.items()}


def _range(name: str, one: Distribution) -> Distribution:
    from hopaas_p2p.translate import to_optuna, to_record

    try:
        return to_record(to_optuna(one))
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"the parameter {name!r} = {one}: {error}") from None


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as JSON returns them, so that numpy's numbers become Python's, and tuples become lists."""
    from hopaas_p2p.translate import to_json

    return {key: json.loads(to_json(key, value)) for key, value in values.items()}
