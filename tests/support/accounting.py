"""Jobs that train on a clock of their own, with GPUs that count energy: what they really cost, beside what a log says.

The peers are real ones: studies, storages, sessions and meters. The clock is made up, and so are GPUs, which draw what
a job happens to need. Jobs are killed, pre-empted with and without a checkpoint, and replaced; clocks are off by days.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Final, NamedTuple

import optuna

from hopaas_p2p.core.admission import finished
from hopaas_p2p.core.ledger import BOOKED
from hopaas_p2p.core.records import FROM_START, Budget, Checkpoint, Policy
from hopaas_p2p.core.state import State
from hopaas_p2p.errors import NoWork
from hopaas_p2p.peer.peer import Peer
from hopaas_p2p.runtime.metering import gpu_energy
from hopaas_p2p.storage.options import StorageOptions
from hopaas_p2p.storage.storage import Storage
from hopaas_p2p.stores.memory import MemoryStore
from hopaas_p2p.study import Study, StudyPolicy, open_study
from hopaas_p2p.study.trial import Trial
from tests.support.ticking import tick

TTL: Final = 30.0
STEP: Final = 2.0
"""Seconds between two looks at a job."""
_DAY: Final = 86_400_000_000


class FakeNvml:
    """What `pynvml` offers, of GPUs whose energy a test says."""

    class NVMLError(Exception):
        """As pynvml's."""

    def __init__(self, gpus: int) -> None:
        self.millijoules = [1e9 * index for index in range(gpus)]

    def nvmlInit(self) -> None:  # noqa: N802
        """As pynvml's."""

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.millijoules)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        if not 0 <= index < len(self.millijoules):
            raise self.NVMLError
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:  # noqa: N802
        return self.nvmlDeviceGetHandleByIndex(int(uuid.removeprefix("GPU-")))

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:  # noqa: N802
        return int(self.millijoules[handle])


class TrueLease(NamedTuple):
    """What one lease really cost."""

    site: str
    number: int
    epoch: int
    seconds: float
    gpu_seconds: float
    joules: float
    epochs: int


class _Running:
    def __init__(self, trial: Trial, epoch: int, first: int, last: int) -> None:
        self.trial, self.epoch = trial, epoch
        self.step, self.last = first, last
        self.seconds = self.joules = 0.0
        self.epochs = 0
        self.next_at = 0.0


class Job:
    """One batch job: a peer, its devices, and the trial that it runs."""

    def __init__(self, world: Accounting, number: int) -> None:
        self.world = world
        self.site, self.gpus = (("north", 4), ("south", 1))[number % 2]
        self.nvml = FakeNvml(self.gpus)
        self.running: _Running | None = None
        self.over = False
        self._next_tick = world.now
        skew = world.random.choice((0, -400 * _DAY, 30 * _DAY, 7_000_000))
        self.peer = Peer(
            world.store,
            linger=1.0,
            patience=1.0,
            clock=lambda: world.now + 1e5 * number,
            now_us=lambda: round(world.now * 1e6) + 1_700_000_000_000_000 + skew,
            threaded=False,
            uuid=f"job-{number:06d}",
            jitter=random.Random(number),
            energy=gpu_energy(self.nvml),
            describe=lambda: {"site": self.site, "user": "ann", "gpus": str(self.gpus), "cores": "8"},
        )
        options = StorageOptions(
            url=world.store.url,
            policy=Policy(),
            linger=None,
            patience=None,
            store_wait=None,
            allow_pickles=False,
            peer_ttl=None,
        )
        self.study: Study = open_study(
            Storage(options, self.peer),
            "accounts",
            space={"x": world.space},
            budget=world.budget,
            policy=StudyPolicy(lease_ttl=TTL, attempts=100),
            sampler=optuna.samplers.RandomSampler(seed=number),
            pruner=optuna.pruners.NopPruner(),
        )

    def live(self) -> None:
        """Two seconds pass: the devices draw power, and what is due is done."""
        power = self.world.random.uniform(80.0, 400.0)
        for index in range(self.gpus):
            self.nvml.millijoules[index] += power * STEP * 1e3
        if self.running is not None:
            self.running.seconds += STEP
            self.running.joules += power * STEP * self.gpus
        if self.world.now >= self._next_tick:
            self._next_tick = self.world.now + min(TTL / 8, tick(self.peer))
        if self.running is None:
            self._ask()
        elif self.world.now >= self.running.next_at:
            self._train(self.running)

    def _ask(self) -> None:
        try:
            trial = self.study.ask()
        except NoWork:
            self.over = not self.study.state.running  # stays, so that somebody ends the leases of jobs that were killed
            return
        logged, resumed_from = self.study.state.trials[trial.number], FROM_START
        if logged.checkpoints and self.world.random.random() < 0.8:
            resumed_from = logged.checkpoints[-1].step
        if logged.reports:
            self.study.handle.resumed_from(trial.number, resumed_from)
        first = max(0, resumed_from + 1)
        self.running = _Running(trial, logged.epoch, first, first + self.world.random.randint(10, 30))
        self._rest(self.running)

    def _rest(self, running: _Running) -> None:
        running.next_at = self.world.now + self.world.random.uniform(4.0, 40.0)

    def _train(self, running: _Running) -> None:
        trial, chance = running.trial, self.world.random.random
        trial.report(chance(), running.step)
        running.epochs += 1
        if trial.should_prune() or chance() < 0.01:
            self._leave()
            self.study.tell(trial, state="pruned")
        elif chance() < 0.02:
            self._leave()
            self.study.handle.release(trial.number, reason="pre-empted")
        elif running.step >= running.last:
            self._leave()
            self.study.tell(trial, chance())
        elif chance() < 0.2:
            saved = Checkpoint(running.step, "key", 1, "0" * 64)
            self.study.handle.checkpoint(trial.number, saved, within=None)
        running.step += 1
        self._rest(running)

    def _leave(self) -> None:
        """Note what the lease that ends cost."""
        one = self.running
        if one is not None:
            gpu_seconds = one.seconds * self.gpus
            lease = self.site, one.trial.number, one.epoch, one.seconds, gpu_seconds, one.joules, one.epochs
            self.world.leases.append(TrueLease(*lease))
            self.running = None

    def die(self) -> None:
        """SIGKILL."""
        self._leave()
        self.over = True


class Accounting:
    """A campaign of so many jobs at a time; `run` goes on until its study is finished."""

    def __init__(self, seed: int, *, jobs: int, budget: Budget) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.kills = 0
        self.space = optuna.distributions.FloatDistribution(0.0, 1.0)
        self.store = MemoryStore(f"accounting-{seed}")
        self.budget = budget
        self.leases: list[TrueLease] = []
        self.jobs: list[Job] = []
        self._wanted, self._made = jobs, 0

    def run(self, *, kill: float, until: float) -> State:
        """The study's state in the end; a job is killed with this probability per second."""
        while self.now < until:
            alive = [job for job in self.jobs if not job.over]
            over = bool(self.jobs) and finished(self.jobs[-1].study.state)
            if over and not any(job.running for job in alive):
                break
            if len(alive) < self._wanted and not over:
                self.jobs.append(Job(self, self._made))
                self._made += 1
            self.now += STEP
            for job in alive:
                if self.random.random() < kill * STEP:
                    self.kills += 1
                    job.die()
                else:
                    job.live()
        last = Job(self, self._made)
        return last.study.state


def true_costs(leases: list[TrueLease], state: State) -> dict[str, Counter[tuple[str, str]]]:
    """What the leases really cost: amount -> (site, outcome) -> how much."""
    found: dict[str, Counter[tuple[str, str]]] = {}
    for lease in leases:
        trial = state.trials[lease.number]
        outcome = BOOKED[trial.state] if trial.end is not None else "given back"
        if any(past.epoch == lease.epoch and past.end == trial.end for past in trial.history):
            outcome = "lost"
        elif trial.end is not None and trial.history and trial.history[-1].end == trial.end:
            outcome = "lost"  # given back, and lost by who took it
        for amount in ("seconds", "gpu_seconds", "joules", "epochs"):
            found.setdefault(amount, Counter())[lease.site, outcome] += getattr(lease, amount)
    return found
