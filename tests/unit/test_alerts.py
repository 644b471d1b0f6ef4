"""Alerts: what is worth saying, said once, to a real receiver."""

from __future__ import annotations

import json
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import optuna
import pytest

import hopaas_p2p
from hopaas_p2p.alerts.rules import FAILURES, STAGNATION, conditions
from hopaas_p2p.alerts.sender import AlertSender, webhook
from hopaas_p2p.cli import main
from hopaas_p2p.cli.watch import looks
from hopaas_p2p.core.records import Policy
from hopaas_p2p.errors import ConfigurationError, StoreUnreachable
from hopaas_p2p.peer.liveness import owners_of
from hopaas_p2p.runtime.credentials import webhook_url
from hopaas_p2p.runtime.settings import Secret
from hopaas_p2p.study import Study
from tests.support.dashboard_studies import FAIL, Scribe
from tests.support.listening import Answering, Dripping
from tests.support.processes import campaign, cli

# --- what is worth saying ---


def test_a_new_best_is_a_condition_of_its_own_value() -> None:
    scribe = Scribe()
    scribe.trial("a", 3.0)
    assert conditions(scribe.state, ()) == {"new-best:3.0": "new best 3 (trial 0)"}
    scribe.trial("a", 4.0)
    assert list(conditions(scribe.state, ())) == ["new-best:3.0"]
    late = scribe.start("a")
    scribe.trial("b", 2.0)
    assert conditions(scribe.state, ()) == {"new-best:2.0": "new best 2 (trial 3)"}
    scribe.finish("a", late, 2.0)  # the earliest of equals is the best one, and no better
    assert conditions(scribe.state, ()) == {"new-best:2.0": "new best 2 (trial 2)"}


def test_failures_in_a_row_hold_until_a_trial_succeeds() -> None:
    scribe = Scribe()
    for round_ in range(2):
        for _ in range(5):
            assert "failures" not in conditions(scribe.state, ())
            scribe.trial("a", state=FAIL, reason="OOM: out of memory\nTraceback")
        assert "5 trials in a row failed; the last: OOM: out of memory" in conditions(scribe.state, ())["failures"]
        scribe.trial("a", 10.0 + round_)


def test_the_budget_is_said_at_eighty_percent_and_anew_when_it_is_moved() -> None:
    scribe = Scribe(policy=Policy(budget=10))
    for at in range(8):
        assert "budget:trials:10" not in conditions(scribe.state, ()), at
        scribe.trial("a", 1.0)
    assert conditions(scribe.state, ())["budget:trials:10"] == "8 of 10 trials of the budget are used"
    scribe.trial("a", 1.0)
    scribe.trial("a", 1.0)
    assert list(conditions(scribe.state, (), over=True)) == ["new-best:1.0", "budget:trials:10", "done"]


def test_nothing_better_for_long_is_stagnation() -> None:
    scribe = Scribe()
    scribe.trial("a", 1.0)
    for _ in range(STAGNATION):
        assert list(conditions(scribe.state, ())) == ["new-best:1.0"]
        scribe.trial("a", 2.0)
    assert conditions(scribe.state, ())["stagnation:0"] == "no better trial among the last 100 complete ones"


def test_a_site_is_silent_when_all_its_peers_are() -> None:
    scribe = Scribe()
    for peer, site in (("a", "north"), ("b", "north"), ("c", "south")):
        scribe.join(peer, site)
        scribe.start(peer)
    assert conditions(scribe.state, {"a"}) == {}
    assert conditions(scribe.state, {"a", "b"}) == {
        "site-silent:north": "site north: all 2 of its peers that run trials are silent"
    }


# --- the webhook ---


class Receiver:
    """A webhook that keeps what it gets; answers with `status`."""

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        self.status = 204
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if receiver.status < 300:
                    receiver.got.append(json.loads(body))
                self.send_response(receiver.status)
                if receiver.status == 302:
                    self.send_header("Location", "/elsewhere")
                self.end_headers()

            def log_message(self, *_args: Any) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook/s3cr3t"

    def kinds(self) -> list[str]:
        return [message["kind"] for message in self.got]

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def study(tmp_path: Path) -> Iterator[Study]:
    study = campaign(tmp_path, budget=5, lease_ttl=0.5)
    yield study
    study.close()


def test_what_holds_at_the_first_look_is_said_except_the_best(study: Study, receiver: Receiver) -> None:
    study.optimize(lambda trial: 10.0 - trial.number, n_trials=4)
    sender = AlertSender(study, webhook(Secret(receiver.url)))

    sender.look()
    sender.look()
    study.optimize(lambda trial: 10.0 - trial.number, n_trials=1)
    sender.look()

    assert receiver.kinds() == ["budget", "new-best", "done"]
    assert receiver.got[1]["text"] == "s: new best 6 (trial 4)"
    assert len({message["id"] for message in receiver.got}) == 3


def test_the_end_of_a_study_whose_grid_is_through_is_said(tmp_path: Path, receiver: Receiver) -> None:
    sampler = optuna.samplers.BruteForceSampler()
    study = campaign(tmp_path, space={"n": hopaas_p2p.Int(1, 2)}, sampler=sampler, budget=9)
    study.optimize(lambda trial: trial.params["n"])
    AlertSender(study, webhook(Secret(receiver.url))).look()
    assert receiver.got[-1]["text"].startswith("s: the study is done; the best is 1 ")
    study.close()


def test_nobodys_text_is_a_mention_or_a_link_of_a_chat(study: Study, receiver: Receiver) -> None:
    """Chat programs take what stands between < and > for those; no other receiver has to undo an escape."""
    for _ in range(FAILURES):
        study.tell(study.ask(), state="fail", reason="<!channel> <https://evil.example/|log in> & more")
    AlertSender(study, webhook(Secret(receiver.url))).look()
    (text,) = (one["text"] for one in receiver.got if one["kind"] == "failures")
    assert text.endswith("«!channel» «https://evil.example/|log in» & more")


def test_an_outage_of_the_store_is_no_silence_of_a_site(
    study: Study, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_study: Study) -> dict[str, Any]:
        raise StoreUnreachable

    study.ask()
    beats = dict.fromkeys(owners_of(study.state), "the same")
    monkeypatch.setattr(study.storage.peer.store, "beats", lambda _owners: beats)
    seen = looks(study, AlertSender(study, webhook(Secret(receiver.url))))
    next(seen)
    with monkeypatch.context() as outage:
        outage.setattr("hopaas_p2p.cli.watch._look", away)
        assert next(seen)["outage"]
    time.sleep(study.state.policy.ttl * 1.2)
    next(seen)
    assert receiver.kinds() == []
    time.sleep(study.state.policy.ttl * 1.2)
    next(seen)
    assert receiver.kinds() == ["site-silent"]


def test_a_viewer_may_be_told_too_and_nothing_is_written(study: Study, receiver: Receiver) -> None:
    study.optimize(lambda _trial: 1.0, n_trials=5)
    lsn = study.state.lsn

    AlertSender(study, webhook(Secret(receiver.url))).look()

    assert receiver.kinds() == ["budget", "done"]
    assert study.state.lsn == lsn


def test_a_receiver_that_fails_gets_it_later_and_is_not_named(
    study: Study, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hopaas_p2p.alerts.sender._RETRY_INTERVAL", 0.0)
    complaints: list[str] = []
    sender = AlertSender(study, webhook(Secret(receiver.url)), complain=complaints.append)
    sender.look()
    study.optimize(lambda _trial: 1.0, n_trials=1)
    for status in (500, 302):
        receiver.status = status
        assert sender.look() == []
    receiver.status = 200
    assert sender.look() == ["new-best:1.0"]
    assert sender.look() == []  # once
    assert receiver.kinds() == ["new-best"]
    assert "it answered 500" in complaints[0]
    assert "s3cr3t" not in "".join(complaints)


@pytest.mark.parametrize(
    "answer", [b"nonsense\r\n\r\n", b"HTTP/1.1 302 F\r\nLocation: http://[x/\r\n\r\n", b"HTTP/1.1 200 " + b"x" * 70_000]
)
def test_a_receiver_that_answers_nonsense_ends_no_watch(study: Study, answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        study.optimize(lambda _trial: 1.0, n_trials=5)
        complaints: list[str] = []
        url = Secret(f"http://127.0.0.1:{server.getsockname()[1]}/s3cr3t")
        assert AlertSender(study, webhook(url), complain=complaints.append).look() == []
        thread.join()
    assert "the webhook does not accept alerts" in complaints[0]


@pytest.mark.parametrize("begins", [b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000])
def test_a_receiver_that_drips_its_answer_holds_up_no_watch(
    study: Study, begins: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hopaas_p2p.alerts.sender._TIMEOUT", 0.5)
    study.optimize(lambda _trial: 1.0, n_trials=5)
    complaints: list[str] = []
    with Dripping(begins) as listening:
        url, began = Secret(f"http://127.0.0.1:{listening.port}/s3cr3t"), time.monotonic()
        assert AlertSender(study, webhook(url), complain=complaints.append).look() == []
        assert time.monotonic() - began < 3
    assert "the webhook does not accept alerts" in complaints[0]


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_an_alert_goes_through_the_proxy_of_the_site_and_no_error_names_the_receiver(
    study: Study, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    study.optimize(lambda _trial: 1.0, n_trials=5)
    complaints: list[str] = []
    with Answering(b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n") as proxy:
        monkeypatch.setenv(f"{scheme}_proxy", f"http://ann:geheim@127.0.0.1:{proxy.port}")
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        url = Secret(f"{scheme}://s3cr3t.example.org/s3cr3t")
        assert AlertSender(study, webhook(url), complain=complaints.append).look() == []
    assert "answered 403" in complaints[0]
    assert "s3cr3t" not in complaints[0]
    assert "geheim" not in complaints[0]


def test_a_webhook_that_is_not_a_url_is_refused_without_showing_it(tmp_path: Path) -> None:
    for url in ("https://a:s3cr3t@[x", "https://a:s3cr3t@\u2100/"):
        with pytest.raises(ConfigurationError, match="no URL that can be parsed") as refused:
            webhook_url({"HOPAAS_WEBHOOK": url, "HOME": str(tmp_path)})
        assert "s3cr3t" not in "".join(traceback.format_exception(refused.value))


def test_a_webhook_is_http_or_https() -> None:
    with_spaces = [f"https://x.example.org/s3cr3t{odd}" for odd in (" x", "\n", "\u20ac")]  # which Python would show
    odd_hosts = ("https://a..b/s3cr3t", f"https://{'a' * 64}.b/s3cr3t", "https://x:\u0661/s3cr3t")
    odd_hosts += ("https://x:99999/s3cr3t", "https://[::::::]/s3cr3t")  # Python refuses these when it connects
    for url in (
        "file:///etc/passwd",
        "ftp://x/y",
        "https://",
        "s3cr3t",
        "https://a:s3cr3t@x/y",
        *odd_hosts,
        *with_spaces,
    ):
        with pytest.raises(ConfigurationError) as caught:
            webhook(Secret(url))
        assert "s3cr3t" not in str(caught.value)


def test_watch_posts_alerts_till_the_end(study: Study, receiver: Receiver, tmp_path: Path) -> None:
    study.optimize(lambda trial: 5.0 - trial.number, n_trials=1)
    hook = tmp_path / "webhook"
    hook.write_text(receiver.url + "\n")
    study.optimize(lambda trial: 5.0 - trial.number)
    done = cli("watch", "s", "--store", str(tmp_path / "store"), "--alert", HOPAAS_WEBHOOK_FILE=str(hook))
    assert receiver.kinds() == ["budget", "done"]
    assert receiver.got[0]["text"] == "s: 5 of 5 trials of the budget are used"
    assert "s3cr3t" not in done.stdout + done.stderr
    refused = cli("watch", "s", "--store", str(tmp_path / "store"), "--alert", check=False)
    assert refused.returncode == 78  # a configuration error
    assert "HOPAAS_WEBHOOK_FILE" in refused.stderr


def test_watch_posts_the_last_alert_until_it_is_accepted_and_says_if_it_is_not(
    study: Study, receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hopaas_p2p.alerts.sender._RETRY_INTERVAL", 0.0)
    monkeypatch.setenv("HOPAAS_WEBHOOK", receiver.url)
    study.optimize(lambda trial: 5.0 - trial.number)
    command = ["watch", "s", "--store", str(tmp_path / "store"), "--alert", "--interval", "0.05"]
    receiver.status = 500
    with monkeypatch.context() as patience:
        patience.setattr("hopaas_p2p.cli.watch._LAST_ALERTS", 0.2)
        assert main.run(command) == 1

    threading.Timer(0.5, setattr, (receiver, "status", 204)).start()

    assert main.run(command) == 0
    assert receiver.kinds() == ["budget", "done"]


def test_watch_goes_on_if_a_study_goes_on_that_was_done(
    study: Study, receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time in which the last alert is posted again is no time-out for a study that got a larger budget."""
    monkeypatch.setattr("hopaas_p2p.alerts.sender._RETRY_INTERVAL", 0.0)
    monkeypatch.setattr("hopaas_p2p.cli.watch._LAST_ALERTS", 3.0)
    monkeypatch.setenv("HOPAAS_WEBHOOK", receiver.url)
    study.optimize(lambda trial: 5.0 - trial.number)
    receiver.status = 500
    went_on = False

    def go_on() -> None:
        nonlocal went_on
        study.set_budget(6)
        time.sleep(1.0)  # a look at the study from before this ends no watch that posts its alert only now
        receiver.status = 204
        time.sleep(2.5)
        went_on = True
        study.optimize(lambda _trial: 1.0)

    thread = threading.Timer(1.0, go_on)
    thread.start()
    code = main.run(["watch", "s", "--store", str(tmp_path / "store"), "--alert", "--interval", "0.05"])
    assert (code, went_on) == (0, True)
    thread.join()


def test_watch_posts_the_last_alert_after_an_outage(
    study: Study, receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store went away between the look at the study and the one at its peers."""
    monkeypatch.setenv("HOPAAS_WEBHOOK", receiver.url)
    study.optimize(lambda trial: 5.0 - trial.number)
    outages, look = [StoreUnreachable("away")] * 2, AlertSender.look

    def away(sender: AlertSender) -> list[str]:
        if outages:
            raise outages.pop()
        return look(sender)

    monkeypatch.setattr(AlertSender, "look", away)
    assert main.run(["watch", "s", "--store", str(tmp_path / "store"), "--alert", "--interval", "0.05"]) == 0
    assert receiver.kinds() == ["budget", "done"]
