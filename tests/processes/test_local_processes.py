"""`hopaas-p2p serve local` and `mcp` as processes: programs in other languages, agents, and clients that are killed."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hopaas_p2p
from hopaas_p2p.core.admission import finished
from tests.support.needs import need_programs
from tests.support.processes import CLI, ROOT, campaign, cli, environment, states, until


def _created(store: Path, budget: int) -> None:
    cli("study", "create", "s", "-s", str(store), "--budget", str(budget), "--space", "x=float(0,1)")


class Local:
    """`hopaas-p2p serve local`, on a free port."""

    def __init__(self, store: Path, *options: str) -> None:
        self.log = store.parent / "local.log"
        env = environment(XDG_STATE_HOME=str(store.parent / "state"))
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*CLI, "serve", "local", "-s", str(store), *options], stdout=log, stderr=log, env=env
            )
        until(lambda: "Listening on" in self.log.read_text(), 60, what=self.log.read_text)
        said = self.log.read_text()
        self.url = said.partition("Listening on ")[2].split(";")[0].strip()
        self.key_file = Path(said.partition("the key is in ")[2].strip() or "none")

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "campaign"


@pytest.fixture
def local(store: Path) -> Iterator[Local]:
    _created(store, 6)
    made = Local(store)
    yield made
    if made.process.poll() is None:
        made.process.kill()
        made.process.wait()


def test_the_key_is_kept_in_a_file_for_this_user_alone(local: Local) -> None:
    mode = local.key_file.stat().st_mode

    assert stat.S_IMODE(mode) == 0o600
    assert local.key_file.read_text().strip() not in local.log.read_text()


def test_a_key_that_others_can_read_is_refused(store: Path, tmp_path: Path) -> None:
    _created(store, 6)
    key = tmp_path / "key"
    key.write_text("a-key")
    key.chmod(0o644)

    done = cli("serve", "local", "-s", str(store), "--key-file", str(key), check=False)

    assert done.returncode == 78
    assert f"chmod 600 {key}" in done.stderr


def test_curl_runs_a_trial_and_sigterm_returns_another(local: Local, store: Path) -> None:
    need_programs("the example with curl", "curl", "curl")

    def post(verb: str, body: dict[str, Any]) -> dict[str, Any]:
        header = f"Authorization: Bearer {local.key_file.read_text().strip()}"
        command = ["curl", "-sS", "-H", "@-", "--data", json.dumps(body), f"{local.url}/v1/{verb}"]
        done = subprocess.run(command, input=header, capture_output=True, text=True, timeout=60, check=True)
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    number = post("ask", {"study": "s"})["trial"]
    assert post("tell", {"study": "s", "trial": number, "values": [0.5]})["ok"]
    assert post("ask", {"study": "s"})["ok"]

    assert local.end() == 0

    study = hopaas_p2p.open_study(str(store), "s", create=False)
    assert states(study) == ["COMPLETE", "WAITING"]
    study.close()


def test_a_program_in_cpp_without_a_library_meets_the_budget(local: Local, store: Path, tmp_path: Path) -> None:
    need_programs("the example in C++", "g++", "g++")
    program = tmp_path / "train"
    subprocess.run(["g++", "-O1", "-o", str(program), str(ROOT / "examples/local/train.cpp")], check=True, timeout=120)
    assert_meets_the_budget([str(program)], local, store)


def test_a_program_in_r_without_a_package_meets_the_budget(local: Local, store: Path) -> None:
    need_programs("the example in R", "r-base-core", "Rscript")
    assert_meets_the_budget(["Rscript", "--vanilla", str(ROOT / "examples/local/train.R")], local, store)


def assert_meets_the_budget(command: list[str], local: Local, store: Path) -> None:
    """A client that reports and tells runs the whole study."""
    words = [*command, local.url.rpartition(":")[2], str(local.key_file), "s"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    study = hopaas_p2p.open_study(str(store), "s", create=False)
    assert len(study.trials) == 6
    assert set(states(study)) <= {"COMPLETE", "PRUNED"}
    for trial in study.trials:
        assert trial.intermediate_values == {
            epoch: pytest.approx((trial.params["x"] - 0.3) ** 2 + 1 / epoch, abs=1e-5)
            for epoch in range(1, len(trial.intermediate_values) + 1)
        }
    assert all(len(trial.intermediate_values) == 3 for trial in study.trials if trial.state.name == "COMPLETE")
    study.close()


AGENT = """
import asyncio, json, sys
from mcp import Client, StdioServerParameters


async def main(store):
    server = StdioServerParameters(
        command=sys.executable, args=["-m", "hopaas_p2p.cli.main", "serve", "mcp", "-s", store, "--allow-actions"]
    )
    async with Client(server) as client:
        await client.call_tool("studies", {})
        print("ready", flush=True)
        while True:
            asked = await client.call_tool("ask", {"study": "s"})
            if asked.is_error:
                shown = await client.call_tool("show", {"study": "s"})
                if json.loads(shown.content[0].text)["data"]["state"] == "done":
                    return
                await asyncio.sleep(0.2)
                continue
            trial = json.loads(asked.content[0].text)["data"]
            place = {"study": "s", "trial": trial["trial"]}
            await client.call_tool("report", {**place, "value": trial["params"]["x"], "step": 1})
            await asyncio.sleep(0.3)
            told = await client.call_tool("tell", {**place, "values": [trial["params"]["x"]]})
            if not told.is_error:
                print(trial["trial"], flush=True)


asyncio.run(main(sys.argv[1]))
"""


def test_two_agents_and_two_workers_of_which_one_each_is_killed_meet_the_budget(store: Path, tmp_path: Path) -> None:
    pytest.importorskip("mcp")
    cli("study", "create", "s", "-s", str(store), "--budget", "40", "--lease-ttl", "4", "--space", "x=float(0,1)")
    cli("study", "pause", "s", "-s", str(store))
    agent = tmp_path / "agent.py"
    agent.write_text(AGENT)
    python = CLI[0]
    log = tmp_path / "log"
    with log.open("w") as sink:
        agents = [
            subprocess.Popen(
                [python, str(agent), str(store)], stdout=sink, stderr=sink, env=environment(), start_new_session=True
            )
            for _ in range(2)
        ]
        command = [
            *CLI,
            "worker",
            "-s",
            str(store),
            "--study",
            "s",
            "--",
            "sh",
            "-c",
            "sleep 0.1; echo '{\"value\": 0.5}'",
        ]
        workers = [
            subprocess.Popen(command, stdout=sink, stderr=sink, env=environment(), start_new_session=True, cwd=tmp_path)
            for _ in range(2)
        ]
    everything = [*agents, *workers]
    try:
        until(
            lambda: log.read_text().count("ready") == 2 and log.read_text().count("paused") == 2,
            120,
            what=log.read_text,
        )
        study = hopaas_p2p.open_study(str(store), "s", create=False)
        study.resume()
        until(lambda: len({trial.owner for trial in study.state.trials if trial.values}) == 4, 120, what=log.read_text)
        for killed in (agents[0], workers[0]):
            os.killpg(killed.pid, signal.SIGKILL)  # with what it started: no one says goodbye
        until(lambda: finished(study.state), 120, what=log.read_text)
        ended = [process.wait(60) for process in (agents[1], workers[1])]
    finally:
        for process in everything:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    assert ended == [0, 0], log.read_text()
    assert states(study).count("COMPLETE") == 40
    assert "RUNNING" not in states(study)
    study.close()


def test_an_agent_gets_no_long_echo_of_its_request(tmp_path: Path) -> None:
    pytest.importorskip("mcp")
    campaign(tmp_path).close()
    words = [*CLI, "serve", "mcp", "-s", str(tmp_path / "store"), "--allow-actions"]
    hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    asked: list[tuple[str, dict[str, Any]]] = [
        ("initialize", hello),
        ("tools/call", {"name": "show", "arguments": {"study": "A" * 5000}}),
        ("tools/call", {"name": "B" * 5000, "arguments": {}}),
        ("tools/call", {"name": "show", "arguments": {"study": "x\x1b[2J"}}),
        ("tools/call", {"name": "show\x1b[2J", "arguments": {}}),
        ("tools/call", {"name": "show", "arguments": {"study": "s"}}),
    ]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        answers = []
        for number, (method, params) in enumerate(asked):
            request = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            answers.append(process.stdout.readline().decode())
            if not number:
                process.stdin.write(b'{"jsonrpc": "2.0", "method": "notifications/initialized"}\n')
        process.stdin.close()
    assert [json.loads(one)["id"] for one in answers] == list(range(len(asked)))
    assert all(len(one) < 1500 for one in answers[1:-1])
    texts = [json.loads(one)["result"]["content"][0]["text"] for one in answers[1:]]
    assert all(text.isprintable() for text in texts)
    assert "data" in json.loads(texts[-1])
    assert process.returncode == 0
