"""Many who append at once: handles of one process, processes, forks."""

from __future__ import annotations

import multiprocessing
import os
import threading

from hopaas_p2p.stores.base import Entry, Log, Store
from hopaas_p2p.stores.url import open_store
from hopaas_p2p.testing.commits import PATIENCE, append, append_many, everything, outgoing, together
from hopaas_p2p.testing.conformance.base import Conformance


class Racing(Conformance):
    """Handles in threads of one process."""

    def test_racing_handles_get_one_order_that_all_agree_on(self, store: Store) -> None:
        logs = [self.reopen(store).log("study-1") for _ in range(self.racers)]
        lsns = together(
            *[lambda log=log, i=i: append_many(log, f"racer-{i}", self.commits) for i, log in enumerate(logs)]
        )
        total = self.racers * self.commits
        assert sorted(lsn for own in lsns for lsn in own) == list(range(1, total + 1))
        assert all(own == sorted(own) for own in lsns)
        views = [everything(log) for log in [*logs, self.reopen(store).log("study-1")]]
        assert [entry.lsn for entry in views[0]] == list(range(1, total + 1))
        assert all([(e.lsn, e.payload) for e in view] == [(e.lsn, e.payload) for e in views[0]] for view in views)

    def test_what_a_reader_has_seen_never_changes_while_others_append(self, store: Store) -> None:
        logs = [self.reopen(store).log("study-1") for _ in range(2)]
        reader = self.reopen(store).log("study-1")
        done = threading.Event()
        seen: list[Entry] = []

        def read() -> None:
            while not done.is_set():
                seen.extend(everything(reader, len(seen)))

        def write() -> None:
            try:
                together(*[lambda log=log, i=i: append_many(log, f"w-{i}", self.commits) for i, log in enumerate(logs)])
            finally:
                done.set()

        together(read, write)
        seen.extend(everything(reader, len(seen)))
        final = everything(self.reopen(store).log("study-1"))
        assert [(e.lsn, e.payload) for e in seen] == [(e.lsn, e.payload) for e in final]
        assert len(final) == 2 * self.commits

    def test_two_logs_of_one_store_are_used_in_parallel(self, store: Store) -> None:
        names = [f"study-{i}" for i in range(self.racers)]
        together(*[lambda name=name: append_many(store.log(name), "a", self.commits) for name in names])
        for name in names:
            assert [e.payload for e in everything(store.log(name))] == [
                outgoing(f"a-{i}").payload for i in range(self.commits)
            ]


class AcrossProcesses(Conformance):
    """For stores of which other processes see the same as this one."""

    def test_processes_get_one_order_too(self, store: Store) -> None:
        context = multiprocessing.get_context("spawn")
        children = [
            context.Process(target=_append_in_another_process, args=(store.url, "study-1", f"child-{i}", self.commits))
            for i in range(2)
        ]
        for child in children:
            child.start()
        append_many(store.log("study-1"), "parent", self.commits)
        for child in children:
            child.join(PATIENCE)
        assert [child.exitcode for child in children] == [0, 0]
        found = everything(store.log("study-1"))
        assert [entry.lsn for entry in found] == list(range(1, 3 * self.commits + 1))
        assert len({entry.payload for entry in found}) == 3 * self.commits

    def test_parent_and_child_go_on_after_a_fork(self, store: Store, log: Log) -> None:
        append(log, outgoing("before"))
        child = os.fork()
        if child == 0:
            status = 1
            try:
                store.after_fork()
                append_many(log, "child", self.commits, 1)
                status = 0
            finally:
                os._exit(status)
        append_many(log, "parent", self.commits, 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        found = everything(log)
        assert [entry.lsn for entry in found] == list(range(1, 2 * self.commits + 2))
        assert len({entry.payload for entry in found}) == 2 * self.commits + 1


def _append_in_another_process(url: str, uuid: str, name: str, count: int) -> None:
    append_many(open_store(url).log(uuid), name, count)
