"""`python -m tests.support.dashboard_shots`: the pictures in docs/monitor, taken of a study that runs."""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import optuna

import hopaas_p2p
from hopaas_p2p import notes
from hopaas_p2p.core.records import Categorical, Float, Int
from tests.support.dashboard_browser import NARROW, Monitor, Visit, chromium
from tests.support.dashboard_studies import with_rungs
from tests.support.processes import ROOT, environment, until

PICTURES: Final = ROOT / "docs" / "monitor"
_BEFORE: Final = 60  # trials that are over when the pictures are taken
_PEER: Final = """
import math, sys, time
from pathlib import Path
import optuna, hopaas_p2p
optuna.logging.set_verbosity(optuna.logging.ERROR)
url, stop, quick = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
study = hopaas_p2p.open_study(url, "jet tagger", pruner=optuna.pruners.MedianPruner(n_startup_trials=5))
def objective(trial):
    p = trial.params
    floor = 0.08 + 0.05 * abs(math.log10(p["lr"]) + 2.6) + 0.0004 * abs(p["width"] - 192) + 0.1 * p["dropout"] ** 2
    floor += 0.03 * (p["optimizer"] == "sgd")
    if p["width"] > 470:
        raise MemoryError(f"CUDA out of memory: tried to allocate {p['width'] * 8} MiB")
    for epoch in range(20):
        loss = floor + 0.6 * math.exp(-epoch / (3 + 6 * p["dropout"]))
        trial.report(loss, epoch)
        trial.log(epoch, auc=1 - 0.8 * loss, gradient=3 * math.exp(-epoch / 4))
        if trial.should_prune():
            raise optuna.TrialPruned
        if stop.exists():
            break
        time.sleep(1.5 if not quick.exists() else 0.02)
    return floor
while not stop.exists():
    study.optimize(objective, n_trials=1, catch=Exception)
study.close()
"""


def main() -> None:
    """Take them all."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="shots-") as directory:
        _take(Path(directory))


def _take(root: Path) -> None:
    store, stop, quick = root / "store", root / "stop", root / "quick"
    policy = hopaas_p2p.StudyPolicy(lease_ttl=60.0)
    study = hopaas_p2p.open_study(str(store), "jet tagger", budget=200, policy=policy, space={
            "lr": Float(1e-4, 1e-1, log=True), "width": Int(32, 512), "dropout": Float(0.0, 0.6),
            "optimizer": Categorical(("adam", "sgd", "lion")),
        })  # fmt: skip
    notes.save_note(study, "Tagger for the new detector layout. Budget agreed on Monday.")
    notes.change_tags(study, add=["detector", "run 4"])
    quick.touch()
    command = [sys.executable, "-W", "ignore", "-c", _PEER, str(store), str(stop), str(quick)]
    sites = ("cineca", "infn-t1", "laptop")
    peers = [subprocess.Popen(command, env=environment(HOPAAS_SITE=site, PYTHONWARNINGS="ignore")) for site in sites]
    try:
        until(lambda: sum(study.state.counts[1:4]) >= _BEFORE, 300)
        quick.unlink()
        with Monitor(str(store), "--allow-actions", cwd=root) as monitor, chromium() as browser:
            until(lambda: all(len(study.state.trials[n].reports) > 3 for n in study.state.running), 120)
            visit = Visit(browser, monitor)
            visit.page.set_viewport_size({"width": 1180, "height": 1000})
            _picture(visit, "/", "studies", height=520)
            _picture(visit, "/live?study=jet+tagger", "live", height=1340)
            _picture(visit, "/explore?study=jet+tagger&chart=Parallel", "explore", height=900)
            _picture(visit, "/pruning?study=jet+tagger", "pruning", height=900)
            _picture(visit, f"/trial?study=jet+tagger&trial={study.best_trial.number}", "trial", height=1100)
            _steer(visit, study)
            visit.close()
            visit = Visit(browser, monitor, dark=True)
            visit.page.set_viewport_size(NARROW)  # type: ignore[arg-type]
            _picture(visit, "/live?study=jet+tagger", "telephone", height=844, width=390)
            visit.close()
    finally:
        stop.touch()
        for peer in peers:
            peer.wait(60)
        study.close()
    with_rungs().put_into(str(root / "rungs"))
    with Monitor(str(root / "rungs"), cwd=root) as monitor, chromium() as browser:
        visit = Visit(browser, monitor)
        _picture(visit, "/pruning?study=study", "rungs", height=1000)
        visit.close()


def _picture(visit: Visit, path: str, name: str, *, height: int, width: int = 1180) -> None:
    visit.page.set_viewport_size({"width": width, "height": height})
    visit.go(path)
    visit.page.wait_for_timeout(2500)  # charts are drawn when their place is known
    _keep(visit, name)


def _keep(visit: Visit, name: str) -> None:
    from PIL import Image

    visit.page.evaluate("document.querySelector('[data-testid=stMain]').scrollTo(0, 0)")
    picture = Image.open(io.BytesIO(visit.page.screenshot()))
    picture.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(PICTURES / f"{name}.png", optimize=True)


def _steer(visit: Visit, study: hopaas_p2p.Study) -> None:
    page = visit.page
    page.set_viewport_size({"width": 1180, "height": 980})
    visit.go("/steer?study=jet+tagger")
    number = max(study.state.running)  # the one that has longest to go
    visit.choose("Trial", f"{number} |")
    page.get_by_role("button", name="Stop it").click()
    page.get_by_role("dialog").get_by_role("button", name="Ask it to end").click()
    until(lambda: study.state.trials[number].stop, 60)
    page.get_by_role("button", name="Queue", exact=True).click()
    until(lambda: study.state.waiting, 60)
    _keep(visit, "steer")


if __name__ == "__main__":
    main()
