"""A study of the original: a title, constants and suggestions. The same set-up joins the same study everywhere."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import signal
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

from hopaas_p2p.core.records import Distribution, StudySet
from hopaas_p2p.errors import HopaasError as OwnError
from hopaas_p2p.errors import InvalidInput, LeaseLost, NoSuchStudy
from hopaas_p2p.hopaas.client import Client
from hopaas_p2p.hopaas.exceptions import HopaasConsistencyError, NoMoreTrials, translated, translation
from hopaas_p2p.hopaas.pruners import NopPruner, Pruner
from hopaas_p2p.hopaas.samplers import Sampler, TPESampler
from hopaas_p2p.hopaas.suggestions import PREFIX, Suggestion, parse
from hopaas_p2p.hopaas.trial import FrozenTrial, Trial

if TYPE_CHECKING:
    import optuna

    import hopaas_p2p

_log: Final = logging.getLogger("hopaas_p2p")
_TERMINATED: Final = 128 + signal.SIGTERM  # what `Study.trial` makes of the signal


class LeftByExit(Exception):
    """The script called `sys.exit` inside the block of a trial, which fails for that reason."""


class LossIsNone(Exception):
    """The script set `trial.loss = None` last; the trial fails for that reason, and the script goes on."""


class Study:
    """A study, joined at its first trial. Methods may be called from any thread, and after a fork.

    Args:
        name: a title for people.
        properties: by name, suggestions (or their texts, `optuna#…`) and constants, which every trial repeats.
        special_properties: facts about this job (its node, its address). They are kept with each trial, and are not
            part of the set-up.
        direction: "minimize" or "maximize".
        pruner: of `hopaas_p2p.hopaas.pruners`.
        sampler: of `hopaas_p2p.hopaas.samplers`.
        client: where the study is; by default `Client()`.

    Raises:
        ValueError: an argument is not allowed; the message says which.

    """

    def __init__(
        self,
        name: str,
        properties: Mapping[str, Any],
        special_properties: Mapping[str, Any] | None = None,
        direction: str = "minimize",
        pruner: Pruner | None = None,
        sampler: Sampler | None = None,
        client: Client | None = None,
    ) -> None:
        self._name = name
        checked = _checked(properties, "properties")
        self._order = tuple(checked)
        self._space, self._constants = _divided(checked)
        self._special = _plain(_checked(special_properties or {}, "special_properties"))
        if direction not in ("minimize", "maximize"):
            raise InvalidInput(f"direction must be 'minimize' or 'maximize', not {direction!r}")
        self._direction = direction
        self._pruner, self._sampler = pruner or NopPruner(), sampler or TPESampler()
        try:
            self._made_pruner, self._made_sampler = self._pruner.make(), self._sampler.make()
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"{self._pruner}, {self._sampler}: {error}") from None
        self._client = client if client is not None else Client()
        self._digest = self._fingerprint()
        self._joined: hopaas_p2p.Study | None = None

    def _fingerprint(self) -> str:
        """A digest of the set-up, the same in every process, whatever the order and spelling."""
        space = {name: [type(one).__name__, *msgspec.to_builtins(one)] for name, one in self._space.items()}
        setup = {
            "name": self._name,
            "properties": {"constants": self._constants, "space": space},
            "direction": self._direction,
            "sampler": self._sampler.asdict(),
            "pruner": self._pruner.asdict(),
        }
        return hashlib.sha256(json.dumps(setup, sort_keys=True).encode()).hexdigest()

    def __repr__(self) -> str:
        return f"hopaas.Study({self.store_name!r}, client={self._client!r})"

    @property
    def store_name(self) -> str:
        """The study's name in the store: its title, made a valid name, and the beginning of its id."""
        title = "".join("-" if letter in "/\\" or not letter.isprintable() else letter for letter in self._name)
        return f"{title[:100]}-{self._digest[:8]}"

    @property
    def setup_id(self) -> str:
        """The digest of the set-up, which is the study's id once it is joined."""
        return self._digest

    @property
    def special_properties(self) -> dict[str, Any]:
        """Facts about this job, which are kept with each trial."""
        return dict(self._special)

    @property
    def direction(self) -> str:
        """'minimize' or 'maximize'."""
        return self._direction

    @property
    def is_initialized(self) -> bool:
        """Whether this process has joined the study, by running or reading a trial."""
        return self._joined is not None

    @property
    def study_id(self) -> str | None:
        """The digest of the set-up, the same in every process; None before the study is joined."""
        return self._digest if self.is_initialized else None

    @property
    def best_trial_id(self) -> int:
        """The id of the best trial of all processes.

        Raises:
            HopaasConsistencyError: nobody has started the study yet, or no trial is complete.

        """
        study = self._existing()
        if study is None:
            raise HopaasConsistencyError(f"{self._name!r} has no trials yet: nobody has started one")
        try:
            with translated():
                return study.best_trial.number
        except ValueError:
            raise HopaasConsistencyError("no trial is complete yet") from None

    @property
    def trials(self) -> dict[int, FrozenTrial]:
        """The trials of all processes by id; none if nobody has started the study yet."""
        found = {}
        study = self._existing()
        with translated():
            trials = study.trials if study is not None else ()
        for one in trials:
            found[one.number] = FrozenTrial(
                self._digest, one.number, _loss(one), self.values(one.params), one.state.name
            )
        return found

    def values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Parameters and constants in the order in which the script gave them."""
        values = {**self._constants, **params}
        return {name: values[name] for name in self._order if name in values}

    @contextlib.contextmanager
    def trial(self) -> Iterator[Trial]:
        """`with study.trial() as trial:` starts a trial and ends it, however the block ends.

        The last loss that was set is the result. No loss, None, NaN, an exception, or `sys.exit` inside the block fails
        the trial, with the reason; SIGTERM and Ctrl-C return it, to be run again. Exceptions and signals propagate.

        Raises:
            NoMoreTrials: the study gives out no trial; a script that does not catch it ends, with exit code 0.
            HopaasServerError: the store cannot be reached.

        """
        stopped: BaseException | None = None
        try:
            with contextlib.ExitStack() as block:
                trial = self._start(block)
                try:
                    yield trial
                except BaseException as error:
                    stopped = error
                    trial._ended = True
                    if isinstance(error, SystemExit) and error.code != _TERMINATED:
                        raise LeftByExit(f"the script called sys.exit({error.code!r})") from error
                    raise
                if trial._loss_is_none:
                    trial._ended = True
                    raise LossIsNone("the script set the loss to None")
                trial._conclude()
        except LossIsNone as failed:
            _log.warning("trial %d fails: %s", trial.id, failed)
        except LeftByExit:
            assert stopped is not None
            raise stopped from None
        except OwnError as error:
            if error is stopped:
                raise
            if not isinstance(error, LeaseLost):
                raise translation(error) from error
            _log.warning("%s", error)
            if stopped is not None:
                raise stopped from None

    def _start(self, block: contextlib.ExitStack) -> Trial:
        try:
            with translated():
                inner = block.enter_context(self.join().trial())
                for key, value in self._special.items():
                    inner.set_user_attr(key, value)
        except NoMoreTrials as none:
            _log.warning("%s", none)  # a script that ends by it should say why
            raise
        return Trial(inner, self.values(inner.params))

    def _existing(self) -> hopaas_p2p.Study | None:
        """The study in its store; None if nobody has started it yet."""
        try:
            return self.join(create=False)
        except NoSuchStudy:
            return None
        except OwnError as error:
            raise translation(error) from error

    def join(self, *, create: bool = True) -> hopaas_p2p.Study:
        """The study in its store.

        Raises:
            HopaasError: of `hopaas_p2p.errors`: the store cannot be used, or the study is not there.

        """
        from hopaas_p2p.study import open_study

        if self._joined is None:
            study = open_study(
                self._client.storage(),
                self.store_name,
                space=self._space,
                direction=self._direction,
                sampler=self._made_sampler,
                pruner=self._made_pruner,
                create=create,
            )
            missing = {key: json.dumps(one) for key, one in self._constants.items() if key not in study.state.user}
            if missing:
                study.storage.say(study.study_id, StudySet(user=missing))
            self._joined = study
        return self._joined


def _loss(trial: optuna.trial.FrozenTrial) -> float | None:
    """The result, else the last report of a running or pruned trial; None for a failed one."""
    reports = trial.intermediate_values
    if trial.value is not None or not reports or trial.state.name == "FAIL":
        return trial.value
    return reports[max(reports)]


def _checked(given: Mapping[str, Any], what: str) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise InvalidInput(f"{what} is a dictionary of values by name, not {type(given).__name__}")
    return {str(key).removeprefix("_"): value for key, value in given.items()}


def _divided(properties: Mapping[str, Any]) -> tuple[dict[str, Distribution], dict[str, Any]]:
    """Suggestions and constants, apart."""
    space: dict[str, Distribution] = {}
    constants: dict[str, Any] = {}
    for key, value in properties.items():
        one = parse(value) if isinstance(value, str) and value.startswith(PREFIX) else value
        if isinstance(one, Suggestion):
            space[key] = _range(key, one)
        else:
            constants[key] = value
    return space, _plain(constants)


def _range(name: str, one: Suggestion) -> Distribution:
    from hopaas_p2p.translate import to_optuna, to_record

    try:
        return to_record(to_optuna(one.distribution()))
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"the parameter {name!r} = {one}: {error}") from None


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as JSON gives them back: numbers of numpy become Python's, tuples become lists."""
    plain = {}
    for key, value in values.items():
        try:
            plain[key] = json.loads(json.dumps(value, default=_number))
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"the property {key!r} = {value!r} cannot be stored: {error}") from None
    return plain


def _number(value: Any) -> Any:
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} is not a number, string, boolean, list or dictionary")
