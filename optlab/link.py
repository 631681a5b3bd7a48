"""How the processes of a run talk besides the numbers: who is there, what rank 0 decides, who fell.

All of it goes through a TCPStore in rank 0, which answers whatever the main threads are doing;
numbers go through a process group, where a process waits until its peers come.
"""

# torch documents TCPStore, and does not export it
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import json
import os
import socket
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

from torch.distributed import DistError, TCPStore

from .distributed import Meeting, Ranks

JOIN_WITHIN = 90.0  # seconds in which all processes must have come
BEAT = 0.5  # seconds between two signs of life
SILENT_AFTER = 60  # beats of one's own without a sign of life of another
GRACE = 20.0  # seconds that a main thread has to notice a failure that the watch has seen
_ANSWER = timedelta(seconds=20)  # for the store in rank 0 to answer
_POLL = 0.01  # seconds between two questions to the store

Message = dict[str, Any]
Bury = Callable[[str, str], None]  # (cause, detail) -> marks the run as failed


class Flag(Protocol):
    """What a signal sets."""

    is_set: bool


class Stopped(Exception):
    """A signal came before all processes had met."""


class PeerFailed(Exception):
    """Another process of the run has failed."""


class LeaderEnded(Exception):
    """Rank 0 has ended the run, and its outcome can be asked for."""


class Link:
    """The line between this process and rank 0; made by ``join``."""

    def __init__(self, ranks: Ranks, store: TCPStore, bury: Bury) -> None:
        self.ranks, self.store, self._bury = ranks, store, bury
        self.leader_is_gone = False
        self.gone: list[int] = []  # ranks that have ended without a word
        self._silent: list[int] = []  # ranks of which the watch has missed the signs of life
        self.hosts: list[str] = []
        self._messages = 0
        self._attended = threading.Event()  # the main thread sees to the end of the run
        self.trouble = threading.Event()  # some process has failed, is silent or has ended the run
        self._ended = threading.Event()  # it is done with that: the watch may rest
        self.hosts = self.gather("host", socket.gethostname())
        self._watch = threading.Thread(target=self._keep_watch, daemon=True)
        self._watch.start()

    def gather(self, name: str, value: str) -> list[str]:
        """What every rank says under ``name``, which is used once.

        Raises:
            LeaderEnded, PeerFailed: as ``hear`` does.
        """
        keys = [f"{name}/{rank}" for rank in range(self.ranks.world)]
        self.store.set(keys[self.ranks.rank], value)
        self._wait_for(keys)
        return [self.store.get(key).decode() for key in keys]

    def tell(self, message: Message) -> None:
        """Rank 0 says something to all others; they ``hear`` it."""
        self._messages += 1
        self.store.set(f"told/{self._messages}", json.dumps(message))

    def hear(self) -> Message:
        """What rank 0 says next.

        Raises:
            LeaderEnded: the run has ended, done or busy or failed.
            PeerFailed: another process has failed.
        """
        self._messages += 1
        key = f"told/{self._messages}"
        self._wait_for([key])
        return json.loads(self.store.get(key))

    def _wait_for(self, keys: list[str]) -> None:
        while not self.store.check(keys):
            if self.store.check(["outcome"]):
                raise LeaderEnded
            if self.store.check(["failure"]):
                failure = json.loads(self.store.get("failure"))
                raise PeerFailed(f"{self._name(failure['rank'])}: {failure['cause']}")
            time.sleep(_POLL)

    def conclude(self, outcome: Message) -> None:
        """Rank 0 says how the run has ended, and stays until the others know."""
        self._attended.set()
        self.store.set("outcome", json.dumps(outcome))
        expected = set(range(1, self.ranks.world)) - set(self.gone)
        others = [f"left/{rank}" for rank in sorted(expected)]
        deadline = time.monotonic() + GRACE
        while not self.store.check(others) and time.monotonic() < deadline:
            time.sleep(_POLL)

    def outcome(self) -> Message | None:
        """How the run has ended, for the others; None if rank 0 is gone."""
        try:
            while not self.store.check(["outcome"]):
                time.sleep(_POLL)
            self._attended.set()
            content = json.loads(self.store.get("outcome"))
            self.store.set(f"left/{self.ranks.rank}", "")
        except DistError:
            self._attended.set()
            self.leader_is_gone = True
            return None
        return content

    def close(self) -> None:
        """End the watch."""
        self._attended.set()
        self._ended.set()
        self._watch.join(timeout=GRACE)

    def explain(self, error: Exception) -> tuple[str, str]:
        """Cause and traceback of the failure that came first, wherever it was."""
        self._attended.set()
        own = {
            "rank": self.ranks.rank,
            "cause": f"{type(error).__name__}: {error}",
            "detail": "".join(traceback.format_exception(error)),
        }
        try:
            first = self._publish(own)
            gone = self._gone(known=first["rank"]) if self.ranks.leads else []
        except DistError:
            self.leader_is_gone = True
            first, gone = own, [0]
        detail = f"{self._name(first['rank'])}:\n{first['detail']}"
        self.gone = gone
        if gone:
            return self._obituary(gone), detail
        return f"{self._name(first['rank'])}: {first['cause']}", detail

    def _publish(self, failure: Mapping[str, Any]) -> Message:
        """Say that this process fails; the failure that was said first."""
        return json.loads(self.store.compare_set("failure", "", json.dumps(failure)))

    def _gone(self, *, known: int) -> list[int]:
        """The ranks of which there is no sign of life although they have not left."""
        before = self._beats(self.store, range(self.ranks.world))
        waiting = {rank for rank in before if rank not in (known, self.ranks.rank)}
        deadline = time.monotonic() + GRACE / 4
        while waiting and time.monotonic() < deadline:
            time.sleep(BEAT / 5)
            now = self._beats(self.store, waiting)
            waiting = {
                rank
                for rank in waiting
                if now[rank] == before[rank] and not self.store.check([f"left/{rank}"])
            }
        return sorted(waiting)

    def _obituary(self, gone: list[int]) -> str:
        names = " and ".join(map(self._name, gone))
        if set(gone) <= set(self._silent):
            return f"{names} is gone: no sign of life for {SILENT_AFTER * BEAT:g} s"
        return f"{names} is gone: killed, or out of memory?"

    def _name(self, rank: int) -> str:
        host = f" ({self.hosts[rank]})" if rank < len(self.hosts) else ""
        return f"rank {rank} of {self.ranks.world}{host}"

    @staticmethod
    def _beats(store: TCPStore, ranks: Iterable[int]) -> dict[int, int]:
        return {rank: store.add(f"beat/{rank}", 0) for rank in ranks}

    def _keep_watch(self) -> None:
        """Give signs of life, look for those of others; end the process where its own thread hangs.

        A main thread that waits in a collective for a peer which is gone cannot be interrupted. The
        watch counts its own beats, not seconds: a job that was suspended has missed none.
        """
        others = [rank for rank in range(self.ranks.world) if rank != self.ranks.rank]
        last, silence = dict.fromkeys(others, 0), dict.fromkeys(others, 0)
        troubled = 0  # beats since the first sign of trouble
        try:
            store = TCPStore(
                self.store.host, self.store.port, timeout=_ANSWER, wait_for_workers=False
            )
            while not self._ended.wait(BEAT):
                store.add(f"beat/{self.ranks.rank}", 1)
                if self._attended.is_set():
                    continue
                now = self._beats(store, others)
                for rank in others:
                    silence[rank] = silence[rank] + 1 if now[rank] == last[rank] else 0
                last = now
                silent = [rank for rank in others if silence[rank] > SILENT_AFTER]
                self._silent = silent
                if silent or store.check(["failure"]) or store.check(["outcome"]):
                    self.trouble.set()
                    troubled += 1
                if troubled * BEAT > GRACE and not self._attended.is_set():
                    self._abort(silent)
        except DistError:  # rank 0 is gone, or has left at the end
            self.trouble.set()
            if not self._attended.wait(GRACE):
                self.leader_is_gone = True
                self._abort([0])

    def _abort(self, silent: list[int]) -> None:
        """End this process, whose main thread has not come back; the run is marked first."""
        if silent:
            cause = detail = self._obituary(silent)
        elif self.store.check(["outcome"]):  # rank 0 has ended the run, and marked it itself
            os._exit(1)
        else:
            failure = json.loads(self.store.get("failure"))
            cause = f"{self._name(failure['rank'])}: {failure['cause']}"
            detail = f"{self._name(failure['rank'])}:\n{failure['detail']}"
        if self.ranks.leads or self.leader_is_gone:
            self._bury(cause, detail)
        os._exit(1)


def join(ranks: Ranks, folder: Path, stop: Flag, bury: Bury) -> Link:
    """Meet the other processes of the run whose folder this is.

    Raises:
        Stopped: a signal came first.
        TimeoutError: they have not come.
    """
    deadline = time.monotonic() + JOIN_WITHIN

    def given_up() -> bool:
        return stop.is_set or time.monotonic() > deadline

    meeting = Meeting(folder, ranks)
    store = _host(meeting, given_up) if ranks.leads else _visit(meeting, given_up)
    if store is not None:
        return Link(ranks, store, bury)
    if stop.is_set:
        raise Stopped
    missing = "the others have" if ranks.leads else "rank 0 has"
    raise TimeoutError(
        f"rank {ranks.rank} of {ranks.world} on {socket.gethostname()} waited {JOIN_WITHIN:g} s,"
        f" and {missing} not come: did a process end before it began, or can this node not reach"
        " that of rank 0?"
    )


def _host(meeting: Meeting, given_up: Callable[[], bool]) -> TCPStore | None:
    """Rank 0: open the store, and wait for all to come."""
    store = TCPStore("127.0.0.1", 0, is_master=True, timeout=_ANSWER, wait_for_workers=False)
    token = uuid.uuid4().hex
    store.set("token", token)
    others = [f"here/{rank}" for rank in range(1, meeting.ranks.world)]
    try:
        meeting.announce(store.port, token)
        while not store.check(others):
            if given_up():
                return None
            time.sleep(_POLL)
    finally:
        meeting.close()
    return store


def _visit(meeting: Meeting, given_up: Callable[[], bool]) -> TCPStore | None:
    """The others: find the store of rank 0."""
    for host, port, token in meeting.places(given_up):
        try:
            store = TCPStore(host, port, timeout=_ANSWER, wait_for_workers=False)
            if store.check(["token"]) and store.get("token").decode() == token:
                store.set(f"here/{meeting.ranks.rank}", "")
                return store
        except DistError:  # somebody else's port by now: look again
            continue
    return None
