"""The coordinator's side of a run of processes: who does which gradient, who averages with whom, who is still there.

Beside the engine of processes, between `training`, which is the loop's view of it, and the workers. One thread per
worker receives its messages and acts on them under one lock; one more thread notices who has been silent for too long.

Gradients are granted a few at a time, so that none waits for a message, and handed out again when the worker that had
them is lost: the total is exact. Workers are paired first come, first served (`schedule.Matchmaker`).
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from typing import Any

import networkx as nx

from unlocked.errors import MachineError
from unlocked.gossip import schedule as schedules
from unlocked.gossip.clock import Clock
from unlocked.gossip.processes import messages
from unlocked.gossip.processes.launch import START_SECONDS
from unlocked.gossip.processes.messages import GONE, Begin, Channel, State, Tally, View
from unlocked.tracking import say

GRANT_SECONDS = 0.04  # gradients that are granted at a time: as many as take this long, and one more


class Matchmaker(schedules.Matchmaker):
    """Pairs workers that are there; time is now. A worker is available when it says so, while it still talks, too."""

    def __init__(self, graph: nx.Graph, seed: int) -> None:
        super().__init__(graph, Clock(), seed, 0.0)

    def partner_of(self, worker: int) -> int | None:
        """A neighbour that waits, for a worker that wants to average; without one the worker waits itself."""
        self.owe(worker, 1)
        found = self.offer(worker, 0.0)
        if found is None:
            return None
        self.done(*found[1:])
        return found[2]

    def part(self, one: int, other: int) -> None:
        """The two can not exchange anything any more."""
        for worker, gone in ((one, other), (other, one)):
            self.neighbours[worker] = [j for j in self.neighbours[worker] if j != gone]

    def drop(self, worker: int) -> None:
        """The worker is not there any more."""
        self.waiting.discard(worker)
        for other in list(self.neighbours):
            self.part(worker, other)


@dataclass
class Member:
    """A worker as the coordinator sees it."""

    number: int
    channel: Channel
    process: BaseProcess | None  # None: started by somebody else
    tally: Tally
    done: int = 0  # gradients that it has reported
    until: int = 0  # gradients that it may do
    alive: bool = True
    ready: float = 0.0  # seconds of its first gradient, once it is set up
    heard: float = field(default_factory=time.monotonic)
    wants: bool = False  # to average, while nobody may
    saved: State | None = None
    final: View | None = None


@dataclass
class Sample:
    """The vectors of all members at about the same moment."""

    seconds: float  # of training until then
    views: dict[int, View] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """A run between gradients."""

    states: Mapping[int, State | None]
    samples: dict[int, Sample]  # not yet evaluated
    book: dict[str, Any]
    seconds: float  # of training


@dataclass
class Talk:
    """An averaging under way."""

    pair: tuple[int, int]
    applied: dict[int, bool] = field(default_factory=dict)
    reason: str = ""


class Coordinator:
    """A run's members, from their start to their end. Public methods are the main thread's."""

    def __init__(
        self,
        lines: list[tuple[int, Any, BaseProcess | None]],
        begin: Callable[[int], Begin],
        *,
        graph: nx.Graph | None,
        seed: int,
        total: int,
        samples_at: list[int],
        timeout: float,
        book: dict[str, Any],
        seconds_before: float = 0.0,
    ) -> None:
        """`lines`: (worker, connection, process or None). `graph`: None under all-reduce, where all go in step.

        `samples_at`: numbers of gradients at which all vectors are sampled. `book`: counts that a checkpoint keeps.
        """
        self.total, self.samples_at, self.timeout, self.book = total, samples_at, timeout, book
        self.in_step = graph is None
        self.matchmaker = Matchmaker(graph, seed) if graph is not None else None
        self.changed = (
            threading.Condition()
        )  # guards everything here; notified when what the main thread waits for is so
        self.awaited: Callable[[], bool] | None = None
        self.closing = threading.Event()
        self.members: dict[int, Member] = {}
        self.talks: dict[int, Talk] = {}
        self.talk_number = 0
        self.samples: dict[int, Sample] = {}
        self.seconds_before = seconds_before
        self.paused = self.running = self.finishing = self.closed = False
        self.begun = self.ended = 0.0
        for number, line, process in lines:
            message = begin(number)
            tally = message.state.tally if message.state is not None else Tally()
            self.members[number] = Member(number, Channel(line), process, tally, tally.steps, tally.steps)
        missing = set(range(message.run.workers)) - set(self.members)
        gone = {int(death["worker"]) for death in book["deaths"]}
        for number in sorted(missing | gone) if self.matchmaker is not None else ():
            self.matchmaker.drop(number)
        self.pool = total - self.counted
        self.threads = [
            threading.Thread(target=self._attend, args=(member, begin), name=f"worker {number}", daemon=True)
            for number, member in self.members.items()
        ]
        self.threads.append(threading.Thread(target=self._watch, name="watch", daemon=True))
        for thread in self.threads:
            thread.start()

    # What is so

    @property
    def counted(self) -> int:
        """Gradients over all workers, those of lost ones included."""
        lost = sum(death["gradients"] for death in self.book["deaths"])
        return lost + sum(member.done for member in self.members.values() if member.alive)

    @property
    def alive(self) -> list[Member]:
        """Members that are there."""
        return [member for member in self.members.values() if member.alive]

    def unit(self) -> float:
        """Mean seconds of a gradient over all members and gradients so far."""
        steps = sum(m.tally.steps for m in self.members.values())
        if steps < len(self.members):
            return sum(m.ready for m in self.alive) / max(1, len(self.alive))
        return sum(m.tally.gradient_seconds for m in self.members.values()) / steps

    def quiet(self) -> bool:
        """Whether every granted gradient is done and nobody averages."""
        return not self.talks and all(m.done == m.until for m in self.alive)

    def broken(self) -> bool:
        """Whether the run cannot go on."""
        return not self.alive or (self.in_step and bool(self.book["deaths"]))

    # The main thread's orders

    def wait(self, condition: Callable[[], bool]) -> None:
        """Sleep until a condition holds; `MachineError` if the run cannot go on."""
        with self.changed:
            self.awaited = lambda: condition() or self.broken()
            self.changed.wait_for(self.awaited)
            if condition():
                self.awaited = None
                return
            self.awaited = lambda: not self.alive
            self.changed.wait_for(self.awaited, timeout=1.0)  # others are lost in the same moment: name them all
        raise MachineError(f"no worker can go on: {self.obituary()}; the next call continues from the last checkpoint")

    def _tell(self) -> None:
        """Wake the main thread if what it waits for has come about."""
        if self.awaited is not None and self.awaited():
            self.changed.notify_all()

    def obituary(self) -> str:
        """Who was lost, and why."""
        return "; ".join(f"worker {d['worker']} {d['reason']}" for d in self.book["deaths"])

    def wait_for(self, count: int) -> None:
        """Sleep until so many gradients are done."""
        if self.counted < count:
            self.wait(lambda: self.counted >= count)

    def sample(self, number: int) -> Sample:
        """The sample with this number, from all members that live."""
        self.wait(lambda: number in self.samples and all(m.number in self.samples[number].views for m in self.alive))
        with self.changed:
            return self.samples.pop(number)

    def seconds(self) -> float:
        """Wall-clock seconds of training so far, earlier parts included, pauses and the start-up not."""
        return self.seconds_before + (time.perf_counter() - self.begun if self.running else 0.0)

    def save(self) -> Checkpoint:
        """Everything as it is between gradients, while nobody averages; then all go on."""
        self.wait(lambda: self.running)
        with self.changed:
            self.paused = True
        self.wait(self.quiet)
        begun = time.perf_counter()
        with self.changed:
            for member in self.alive:
                member.saved = None
                self._send(member, messages.Save())
        self.wait(lambda: all(m.saved is not None for m in self.alive))
        with self.changed:
            self.begun += time.perf_counter() - begun
            states = {m.number: m.saved for m in self.alive if m.saved is not None}
            found = Checkpoint(states, dict(self.samples), copy.deepcopy(self.book), self.seconds())
            self.paused = False
            for member in self.alive:
                self._send(member, messages.Continue())
            for member in self.alive:
                self._grant(member)
                if member.wants:
                    self._pair(member)
        return found

    def finish(self) -> Sample:
        """Once all gradients are done: every living member, after its gossip has ended."""
        self.wait_for(self.total)
        with self.changed:
            self.finishing = True
        self.wait(self.quiet)
        with self.changed:
            for member in self.alive:
                self._send(member, messages.Finish())
        self.wait(lambda: all(m.final is not None for m in self.alive))
        with self.changed:
            return Sample(self.ended, {m.number: m.final for m in self.alive if m.final is not None})

    def close(self) -> None:
        """Let all members go; processes of our own that do not end by themselves are killed."""
        with self.changed:
            if self.closed:
                return
            self.closed = True
            orderly = [m for m in self.alive if m.final is not None]
            for member in self.alive:
                self._send(member, messages.Dismissed())
        self.closing.set()
        for member in self.members.values():
            if member.process is not None:
                member.process.join(5.0 if member in orderly else 0.0)
                member.process.kill()
                member.process.join()
            member.channel.hang_up()
        for thread in self.threads:
            thread.join()

    # The members' threads

    def _attend(self, member: Member, begin: Callable[[int], Begin]) -> None:
        """Send a member what it needs, then receive until its line ends."""
        reason = "lost its connection"
        try:
            member.channel.send(begin(member.number))
            while True:
                message = member.channel.receive()
                with self.changed:
                    member.heard = time.monotonic()
                    if isinstance(message, messages.Failed):
                        reason = f"failed ({message.reason})"
                    elif member.alive:
                        self._handle(member, message)
                    self._tell()
        except GONE:
            pass
        with self.changed:
            if not self.closed and member.alive:
                self._lose(member, reason, ended=True)
        member.channel.close()

    def _handle(self, member: Member, message: Any) -> None:
        if isinstance(message, messages.Offer):
            self._offered(member, message)
        elif isinstance(message, messages.Progress):
            member.tally = message.tally
            self._reported(member, message.tally.steps)
        elif isinstance(message, messages.Pong):
            self._reported(member, message.steps)
            if message.busy > self.timeout:
                self._lose(member, f"spent more than {self.timeout:g} s on one gradient")
        elif isinstance(message, messages.Sampled):
            self.samples[message.number].views[member.number] = message.view
        elif isinstance(message, messages.Saved):
            member.saved = message.state
        elif isinstance(message, messages.Final):
            member.final, member.tally = message.view, message.view.tally
        elif isinstance(message, messages.Ready):
            member.ready = message.seconds
            self._begin_if_ready()

    def _begin_if_ready(self) -> None:
        """Start all members at the same moment."""
        if not self.running and all(m.ready for m in self.alive):
            self.running, self.begun = True, time.perf_counter()
            for member in self.alive:
                self._grant(member)

    # Gradients

    def _reported(self, member: Member, steps: int) -> None:
        before = self.counted
        member.done = max(member.done, steps)
        if before < self.counted == self.total:
            self.ended = self.seconds()
        for number, bound in enumerate(self.samples_at):
            if before < bound <= self.counted:
                self.samples[number] = Sample(self.seconds())
                for other in self.alive:
                    self._send(other, messages.Sample(number))
        if self.in_step:
            for other in self.alive:
                self._grant(other)
        else:
            self._grant(member)

    def _grant(self, member: Member) -> None:
        """Give a member gradients to do until it has enough for a while, or there are none left."""
        if self.paused or not self.running or not member.alive:
            return
        unit = self.unit()
        want = 2 + int(GRANT_SECONDS / unit)
        if member.until - member.done > want // 2:
            return
        if self.in_step:
            until = min(self.total // len(self.members), min(m.done for m in self.alive) + want)
            until = max([until, *(m.until for m in self.alive)])
        else:
            # towards the end in small portions, so that all end at about the same time
            want = min(want, max(1, self.pool // (2 * len(self.alive))))
            until = max(member.until, min(member.done + want, member.until + self.pool))
        if until > member.until:
            self.pool -= until - member.until
            member.until = until
            self._send(member, messages.Grant(until, unit))

    # Averagings

    def _offered(self, member: Member, message: messages.Offer) -> None:
        self._reported(member, message.steps)
        if message.number is not None:
            self._confirm(member, message)
        if message.wants:
            self._pair(member)

    def _pair(self, member: Member) -> None:
        """Find a partner for a member that wants to average."""
        assert self.matchmaker is not None
        member.wants = self.paused
        if self.paused or self.finishing:
            self._send(member, messages.Alone())
            return
        peer = self.matchmaker.partner_of(member.number)
        if peer is None:
            self._send(member, messages.Alone())
            return
        self.talk_number += 1
        self.talks[self.talk_number] = Talk((member.number, peer))
        for one, other in ((member.number, peer), (peer, member.number)):
            self._send(self.members[one], messages.Match(self.talk_number, other))

    def _confirm(self, member: Member, message: messages.Offer) -> None:
        """One side of an averaging is done with it."""
        assert self.matchmaker is not None
        assert message.number is not None
        talk = self.talks[message.number]
        talk.applied[member.number] = message.applied
        talk.reason = message.reason or talk.reason
        if not message.applied:
            self.matchmaker.part(*talk.pair)
        self._account(message.number)

    def _account(self, number: int) -> None:
        """Enter an averaging into the book once all of its workers that live have said what became of it."""
        talk = self.talks[number]
        if any(self.members[k].alive and k not in talk.applied for k in talk.pair):
            return
        del self.talks[number]
        sides = sum(talk.applied.values())
        if sides == 2:
            edge = "{}-{}".format(*sorted(talk.pair))
            self.book["edges"][edge] = self.book["edges"].get(edge, 0) + 1
        else:
            self.book["one_sided" if sides else "failed"] += 1
            if all(self.members[k].alive for k in talk.pair) and not self.closed:
                say("workers {} and {} average no more: {}".format(*talk.pair, talk.reason))

    # Losses

    def _lose(self, member: Member, reason: str, ended: bool = False) -> None:
        """Go on without a member: what it had to do is handed out again, what it owes and is owed is void."""
        member.alive = False
        if member.process is not None:
            member.process.join(1.0 if ended else 0.0)
            if member.process.exitcode is not None and member.process.exitcode < 0:
                reason = f"was killed by {signal.Signals(-member.process.exitcode).name}"
            member.process.kill()
        self._send(member, messages.Dismissed(reason))
        member.channel.hang_up()
        seconds = self.seconds()
        self.book["deaths"].append(
            {"worker": member.number, "reason": reason, "gradients": member.done, "seconds": round(seconds, 3)}
            | {"tally": dataclasses.asdict(member.tally)}
        )
        say(f"worker {member.number} {reason}" + ("" if self.in_step else "; the others go on"))
        self.pool += member.until - member.done
        if self.matchmaker is not None:
            self.matchmaker.drop(member.number)
        for number in [n for n, talk in self.talks.items() if member.number in talk.pair]:
            self._account(number)
        self._begin_if_ready()
        for other in self.alive:
            self._grant(other)
        self._tell()

    def _watch(self) -> None:
        """Ask silent members whether they are there, and give up those that do not answer."""
        while not self.closing.wait(self.timeout / 4):
            with self.changed:
                for member in self.alive:
                    limit = self.timeout if member.ready else max(self.timeout, START_SECONDS)
                    silent = time.monotonic() - member.heard
                    if silent > limit:
                        self._lose(member, f"was silent for more than {limit:g} s")
                    elif silent > self.timeout / 4 and member.ready:
                        self._send(member, messages.Ping())

    def _send(self, member: Member, message: Any) -> None:
        """Send, if the member is still there; its own thread notices if it is not."""
        with contextlib.suppress(GONE):
            member.channel.send(message)
