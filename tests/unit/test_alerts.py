"""Alerts: what is worth saying, said once, by one sender at a time, to a real receiver."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

import hopaas_p2p
from dashboard_app.views import live
from hopaas_p2p.alerts import Alert, AlertMemory, AlertSender, webhook
from hopaas_p2p.alerts.rules import STAGNATION, after_sending, due
from hopaas_p2p.core.attributes import ALERTS
from hopaas_p2p.core.records import Policy
from hopaas_p2p.errors import ConfigurationError
from hopaas_p2p.runtime.settings import Secret
from hopaas_p2p.study import Study
from tests.support.dashboard_studies import FAIL, Scribe
from tests.support.processes import campaign, cli, until

# --- what is worth saying ---


def kinds(alerts: list[Alert]) -> list[str]:
    return [alert.kind for alert in alerts]


def test_a_new_best_is_said_for_each_one_but_not_for_what_was_there_before() -> None:
    scribe = Scribe()
    scribe.trial("a", 3.0)
    said, memory = due(scribe.state, {}, AlertMemory())
    assert said == []
    scribe.trial("a", 4.0)
    assert due(scribe.state, {}, memory)[0] == []
    scribe.trial("a", 2.0)
    (alert,), memory = due(scribe.state, {}, memory)
    assert (alert.kind, alert.key, alert.details) == (
        "new-best",
        "new-best:2",
        {"trial": 2, "value": 2.0, "before": 3.0},
    )
    assert due(scribe.state, {}, memory)[0] == []


def test_failures_in_a_row_are_said_once_and_again_after_they_had_passed() -> None:
    scribe = Scribe()
    memory = AlertMemory(begun=True)
    for round_ in range(2):
        for _ in range(5):
            scribe.trial("a", state=FAIL, reason="OOM: out of memory\nTraceback")
        (alert,), memory = due(scribe.state, {}, memory)
        assert "5 trials in a row failed; the last: OOM: out of memory" in alert.text
        scribe.trial("a", state=FAIL, reason="OOM")
        assert due(scribe.state, {}, memory)[0] == []
        scribe.trial("a", 10.0 + round_)
        memory = due(scribe.state, {}, memory)[1]


def test_the_budget_is_said_at_eighty_percent_and_anew_when_it_is_moved() -> None:
    scribe = Scribe(policy=Policy(budget=10))
    memory = AlertMemory(best=-1.0, begun=True)
    for at in range(8):
        assert due(scribe.state, {}, memory)[0] == [], at
        scribe.trial("a", 1.0)
    (alert,), memory = due(scribe.state, {}, memory)
    assert (alert.kind, alert.text) == ("budget", "8 of 10 trials of the budget are used")
    scribe.trial("a", 1.0)
    scribe.trial("a", 1.0)
    assert kinds(due(scribe.state, {}, memory)[0]) == ["done"]


def test_nothing_better_for_long_is_stagnation() -> None:
    scribe = Scribe()
    scribe.trial("a", 1.0)
    for _ in range(STAGNATION):
        assert due(scribe.state, {}, AlertMemory())[0] == []
        scribe.trial("a", 2.0)
    (alert,), _ = due(scribe.state, {}, AlertMemory())
    assert alert.text == "no better trial among the last 100 complete ones"


def test_a_site_is_silent_when_all_its_peers_are() -> None:
    scribe = Scribe()
    for peer, site in (("a", "north"), ("b", "north"), ("c", "south")):
        scribe.join(peer, site)
        scribe.start(peer)
    assert due(scribe.state, {"a": 1.2, "b": 0.4, "c": 0.1}, AlertMemory())[0] == []
    (alert,), memory = due(scribe.state, {"a": 1.2, "b": 1.0, "c": 0.1}, AlertMemory())
    assert alert.text == "site north: all 2 of its peers that run trials are silent"
    assert due(scribe.state, {"a": 9.0, "b": 9.0, "c": 0.1}, memory)[0] == []


def test_what_could_not_be_said_is_still_to_be_said() -> None:
    scribe = Scribe(policy=Policy(budget=2))
    before = due(scribe.state, {}, AlertMemory())[1]
    scribe.trial("a", 1.0)
    scribe.trial("a", 2.0)
    alerts, after = due(scribe.state, {}, before)
    assert kinds(alerts) == ["new-best", "budget", "done"]
    memory = after_sending(alerts[:1], before, after)
    assert kinds(due(scribe.state, {}, memory)[0]) == ["budget", "done"]
    assert kinds(due(scribe.state, {}, after_sending([], before, after))[0]) == ["new-best", "budget", "done"]


# --- the seat and the webhook ---


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


def other(study: Study) -> Study:
    """The same study as another process sees it."""
    return hopaas_p2p.open_study(study.storage.url, study.name)


def test_of_two_that_watch_one_says_it_and_the_other_goes_on_when_it_leaves(study: Study, receiver: Receiver) -> None:
    send = webhook(Secret(receiver.url))
    second_study = other(study)
    first, second = AlertSender(study, send, settle=0.0), AlertSender(second_study, send, settle=0.0)
    first.look()
    second.look()
    study.optimize(lambda trial: 10.0 - trial.number, n_trials=1)
    second.look()
    first.look()
    second.look()
    assert receiver.kinds() == ["new-best"]
    assert (first.is_leader, second.is_leader) == (True, False)
    first.resign()
    study.optimize(lambda trial: 10.0 - trial.number, n_trials=1)
    second.look()
    first.look()
    assert receiver.kinds() == ["new-best", "new-best"]
    assert receiver.got[1]["details"] == {"trial": 1, "value": 9.0, "before": 10.0}
    assert len({message["id"] for message in receiver.got}) == 2
    second_study.close()


def test_of_two_that_take_the_seat_at_once_the_logs_last_word_counts(study: Study, receiver: Receiver) -> None:
    second_study = other(study)
    senders = [
        AlertSender(study, webhook(Secret(receiver.url)), settle=0.0),
        AlertSender(second_study, webhook(Secret(receiver.url))),
    ]
    senders[0]._appoint(senders[0].id)
    senders[1]._appoint(senders[1].id)
    assert [sender.is_leader for sender in senders] == [False, True]
    second_study.close()


def test_the_seat_of_a_sender_that_fell_silent_is_taken(study: Study, receiver: Receiver) -> None:
    second_study = other(study)
    AlertSender(study, webhook(Secret(receiver.url)), settle=0.0).look()  # and never again
    heir = AlertSender(second_study, webhook(Secret(receiver.url)), settle=0.0)
    heir.look()
    assert not heir.is_leader
    until(lambda: heir.look() or heir.is_leader, 30, what="the seat was not taken")
    second_study.close()


def test_a_receiver_that_fails_gets_it_later_and_is_not_named(
    study: Study, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hopaas_p2p.alerts.sender._RETRY_INTERVAL", 0.0)
    complaints: list[str] = []
    sender = AlertSender(study, webhook(Secret(receiver.url)), settle=0.0, complain=complaints.append)
    sender.look()
    study.optimize(lambda _trial: 1.0, n_trials=1)
    for status in (500, 302):
        receiver.status = status
        assert sender.look() == []
    receiver.status = 200
    assert kinds(sender.look()) == ["new-best"]
    assert receiver.kinds() == ["new-best"]
    assert "it answered 500" in complaints[0]
    assert "s3cr3t" not in "".join(complaints)


def test_the_monitor_says_whether_somebody_is_told_and_how_to_be(study: Study, receiver: Receiver) -> None:
    sender = AlertSender(study, webhook(Secret(receiver.url)), settle=0.0)
    assert "hopaas-p2p watch 'my study' --alert" in live.alerts(study.state, "my study")
    sender.look()
    assert "No alert is active" in live.alerts(study.state, "my study")
    study.set_budget(1)
    study.optimize(lambda _trial: 1.0, n_trials=1)
    sender.look()
    assert live.alerts(study.state, "my study").endswith("Active alerts: budget 1, done.")
    sender.resign()
    assert "--alert" in live.alerts(study.state, "my study")


def test_a_seat_that_cannot_be_read_is_free(study: Study, receiver: Receiver) -> None:
    study.storage.set_study_system_attr(study.study_id, ALERTS, {"sender": 7})
    sender = AlertSender(study, webhook(Secret(receiver.url)), settle=0.0)
    sender.look()
    assert sender.is_leader


def test_a_webhook_is_http_or_https() -> None:
    for url in ("file:///etc/passwd", "ftp://x/y", "https://", "s3cr3t"):
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
