"""Artifacts and checkpoints over a bridge: safe here at once, there soon, and brought on demand."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import NoReturn

import pytest

from hopaas_p2p.errors import ConfigurationError, Denied, StoreUnreachable
from hopaas_p2p.stores.base import Beat, ExchangeResult, Outgoing
from hopaas_p2p.stores.bridge.messages import INBOX, REPLIES, FileRequest, Reply
from hopaas_p2p.stores.memory import MemoryArtifacts
from hopaas_p2p.testing.commits import everything
from tests.support.bridge_process import BridgeProcess
from tests.support.bridge_world import World
from tests.support.processes import SPACE, until

KEY = "study-1/7/model"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(b"weights " * 1000)
    return path


def there(world: World, key: str = KEY) -> bytes | None:
    """What the far side has, after the bridge has worked a little."""
    world.sleep(0.05)
    return world.far.artifacts()._files.get(key)  # type: ignore[no-any-return]


def test_a_file_is_safe_here_at_once_and_there_soon(source: Path) -> None:
    world = World()
    world.store().artifacts().put(KEY, source)
    assert world.near.artifacts()._files[KEY] == source.read_bytes()
    assert until(lambda: there(world)) == source.read_bytes()
    world.store().artifacts().delete(KEY)
    until(lambda: there(world) is None)


@pytest.mark.parametrize("how", ["bridge", "link"])
def test_a_file_waits_for_the_link_and_for_the_next_bridge(source: Path, how: str) -> None:
    world = World()
    world.break_off(how)
    world.store().artifacts().put(KEY, source)
    for _ in range(5):
        assert there(world) is None
    world.bridges = [world.new_bridge()]
    world.restore()
    assert until(lambda: there(world)) == source.read_bytes()
    until(lambda: (there(world), _noted(world) == len(everything(world.near.log(INBOX))))[1])


def _noted(world: World) -> int:
    """How far the ininbox was carried out, as far as the bridge has recorded."""
    found = world.near.log(INBOX).newest_snapshot()
    return found[0] if found is not None else 0


def test_the_note_in_the_inbox_waits_for_files_that_are_under_way(source: Path) -> None:
    world = World()
    world.bridges[0]._files._retry_at = 1e9
    world.store().artifacts().put(KEY, source)
    world.settle(5)
    assert _noted(world) == 0
    world.bridges = [world.new_bridge()]
    assert until(lambda: there(world)) == source.read_bytes()


def test_a_far_file_is_brought_once_and_stays(tmp_path: Path, source: Path) -> None:
    world = World()
    world.far.artifacts().put(KEY, source)
    target = tmp_path / "target"
    artifacts = world.store(timeout=1e9).artifacts()
    artifacts.get(KEY, target)
    assert target.read_bytes() == source.read_bytes()
    world.break_off("link")
    world.store().artifacts().get(KEY, target)
    with pytest.raises(StoreUnreachable):
        world.store().artifacts().get("study-1/8/model", target)
    world.restore()
    with pytest.raises(KeyError):
        artifacts.get("study-1/8/model", target)
    assert artifacts.keys("study-1") == [KEY]


def test_a_file_that_the_far_store_refuses_stays_here_and_holds_up_no_other(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = World()
    put = MemoryArtifacts.put

    def refusing(self: MemoryArtifacts, key: str, path: Path, progress: object = None) -> None:
        if self is world.far.artifacts() and key == KEY:
            raise Denied("files of this study are full")
        put(self, key, path)

    monkeypatch.setattr(MemoryArtifacts, "put", refusing)
    world.store().artifacts().put(KEY, source)
    world.store().artifacts().put("study-1/8/model", source)
    until(lambda: there(world, "study-1/8/model"))
    assert there(world) is None
    assert "files of this study are full" in caplog.text
    world.store().artifacts().get(KEY, tmp_path / "target")


def test_a_file_waits_for_a_bridge_whose_token_has_run_out(
    source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = World()

    def denied(*_: object, **__: object) -> NoReturn:
        raise Denied("the token has expired")

    with monkeypatch.context() as patch:
        patch.setattr(world.far.artifacts(), "put", denied)
        patch.setattr(world.far.catalog(), "exchange", denied)
        patch.setattr(world.far.catalog(), "changed", lambda _: None)
        world.store().artifacts().put(KEY, source)
        until(lambda: (there(world), "a file is waiting: the token has expired" in caplog.text)[1])
    world.settle(10)
    assert until(lambda: there(world)) == source.read_bytes()


def test_a_node_that_has_no_room_for_a_copy_is_named_and_holds_up_no_trial(
    source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = World()

    def full(**_: str) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device", "/scratch")

    with monkeypatch.context() as patch:
        patch.setattr("tempfile.TemporaryDirectory", full)
        world.store().artifacts().put(KEY, source)
        until(lambda: (there(world), "a file is waiting: /scratch: No space left on device" in caplog.text)[1])
        assert world.near_peer("near").read().lsn == 0
    world.settle(10)
    assert until(lambda: there(world)) == source.read_bytes()


def test_a_reply_that_the_near_store_could_not_take_is_given_later(source: Path) -> None:
    world = World()
    replies = iter([StoreUnreachable("the disk is full")] * 3)
    take = world.near.log(REPLIES).exchange

    def exchange(outgoing: Outgoing | None, since: int, beat: Beat | None = None) -> ExchangeResult:
        error = next(replies, None) if outgoing is not None else None
        if error is not None:
            raise error
        return take(outgoing, since, beat)

    world.near.log(REPLIES).exchange = exchange  # type: ignore[method-assign]
    world.far.artifacts().put(KEY, source)
    store = world.store()
    place = store.post(FileRequest("list", "study-1"))
    until(lambda: (there(world), store.reply_to(place))[1])
    assert store.reply_to(place) == Reply(place, "", KEY)


def test_a_list_that_no_bridge_can_carry_is_an_error_and_no_endless_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    monkeypatch.setattr(world.far.artifacts(), "keys", lambda _: ["x" * 99] * 50_000)
    artifacts = world.store(timeout=1e9).artifacts()
    with pytest.raises(ConfigurationError, match="too many files"):
        artifacts.keys("study-1")


def test_a_checkpoint_of_this_side_is_resumed_from_on_the_other(postgres_url: str, tmp_path: Path) -> None:
    import hopaas_p2p

    near = tmp_path / "near"
    bridge = BridgeProcess(near, postgres_url, tmp_path).start()
    try:
        here = hopaas_p2p.open_study(str(near), "s", space=SPACE)
        trial = here.ask()
        trial.checkpoint(b"half of it", step=3)
        here.handle.release(trial.number, reason="the job ends")
        here.close()
        there = hopaas_p2p.open_study(postgres_url, "s", create=False)
        again = there.ask()
        assert again.number == trial.number
        assert again.resume is not None
        step, path = again.resume
        assert (step, path.read_bytes()) == (3, b"half of it")
        there.tell(again, 1.0)
        there.close()
    finally:
        bridge.kill()
