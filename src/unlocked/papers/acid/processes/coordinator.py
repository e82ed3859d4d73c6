"""The coordinator's side of a run of processes: who does which gradient, and who is still there.

One thread per worker receives its messages and acts on them under one lock; one more thread notices who has been silent
for too long. Gradients are granted a few at a time, so that none waits for a message, and handed out again when the
worker that had them is lost: the total is exact. Whom a worker averages with is its own affair.

A worker says `ready` (seconds of a gradient; host and port at which neighbours find it), `met` (neighbours that it has
no connection to), `progress` (its tally; seconds that it has spent on a gradient so far, 0 if it rightly waits),
`shown` (an occasion, its state) and `failed` (why). It is told `begin` (the run's id and key, where all-reduce's
workers meet, the vector that all start from; its number, a state to continue from), `meet` (host and port of each
worker; mean seconds of a gradient), `grant` (gradients that it may have done; their mean seconds), `show` (an occasion;
whether to end the averagings first, until `continue`), `ping` (answered by `progress`) and `dismissed` (why, if there
is a reason).
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any

from unlocked.console import say
from unlocked.errors import MachineError
from unlocked.gossip.distributed.hub import Hub
from unlocked.gossip.distributed.wire import start_thread
from unlocked.papers.acid.processes.launch import Line
from unlocked.papers.acid.processes.state import Checkpoint, Death, Sample, State, Tally

# Until a worker is set up: it may have to find a million images on a network file system. One that is gone ends its
# connection before.
SET_UP_SECONDS = 1800.0
GRANT_SECONDS = 0.04  # gradients that are granted at a time: as many as take this long, and one more
SAVE, FINAL = -1, -2  # occasions to show a state, besides the numbers of samples; averagings are halted before


@dataclass
class Member:
    """A worker as the coordinator sees it."""

    number: int
    process: BaseProcess | None
    until: int  # gradients that it may do
    ready: float = 0.0  # seconds of its first gradient, once it is set up
    place: tuple[str, int] = ("", 0)  # where neighbours find it


class Coordinator(Hub):
    """A run's members, from their start to their end. Public methods are the main thread's."""

    def __init__(
        self,
        lines: Iterable[Line],
        first: tuple,
        *,
        gossip: bool,
        total: int,
        samples_at: list[int],
        timeout: float,
        past: Checkpoint,
    ) -> None:
        """`first`: what all workers are told first. `gossip`: else all go in step. `samples_at`: numbers of gradients
        at which all vectors are sampled. `past`: where workers start from; what happens is added.
        """
        super().__init__()
        self.gossip, self.past = gossip, past
        self.total, self.samples_at, self.timeout = total, samples_at, timeout
        self.awaited: Callable[[], bool] | None = None  # what the main thread waits for
        self.closing = threading.Event()
        self.paused = self.running = self.closed = False
        self.begun, self.trained = 0.0, past.seconds
        self.apart: tuple[int, int] | None = None  # neighbours that cannot reach each other
        self.answers = {
            "ready": self._ready,
            "met": self._met,
            "progress": self._progress,
            "shown": self._shown,
            "failed": lambda rank, reason: self.lose(rank, f"failed ({reason})"),
        }
        self.members: dict[int, Member] = {}
        for number, channel, process in lines:
            self.members[number] = Member(number, process, self.done(number))
            self.join(number, channel)
        self.pool = total - self.counted
        self.threads = [start_thread(self._attend, number, first) for number in self.members]
        self.threads.append(start_thread(self._watch))

    # What is so

    @property
    def counted(self) -> int:
        """Gradients over all workers, those of lost ones included."""
        return sum(tally.steps for tally in self.past.tallies.values())

    def done(self, number: int) -> int:
        """Gradients that a worker has reported."""
        return self.past.tallies[number].steps

    @property
    def alive(self) -> list[Member]:
        """Members that are there."""
        return [self.members[number] for number in sorted(self.here)]

    def unit(self) -> float:
        """Mean seconds of a gradient over all workers and gradients so far."""
        tallies = self.past.tallies.values()
        if self.counted < len(tallies):
            return sum(member.ready for member in self.alive) / max(1, len(self.alive))
        return sum(tally.gradient_seconds for tally in tallies) / self.counted

    def quiet(self) -> bool:
        """Whether every granted gradient is done."""
        return all(self.done(member.number) == member.until for member in self.alive)

    def shown(self, occasion: int) -> bool:
        """Whether every living member has shown its state."""
        states = self.past.samples[occasion].states if occasion in self.past.samples else {}
        return bool(self.here) and self.here <= states.keys()

    def broken(self) -> bool:
        """Whether the run cannot go on."""
        return not self.alive or (not self.gossip and bool(self.past.deaths)) or self.apart is not None

    def seconds(self) -> float:
        """Wall-clock seconds of training so far, earlier parts included, pauses and the start-up not."""
        return self.past.seconds + (time.perf_counter() - self.begun if self.running else 0.0)

    # The main thread's orders

    def wait(self, condition: Callable[[], bool]) -> None:
        """Sleep until a condition holds; `MachineError` if the run cannot go on."""
        with self.changed:
            self.awaited = lambda: condition() or self.broken()
            self.changed.wait_for(self.awaited)
            if condition():
                self.awaited = None
                return
            if self.apart is not None:
                right = "runtime.interface must name the network interface that connects all machines"
                raise MachineError(f"workers {self.apart[0]} and {self.apart[1]} have no connection: {right}")
            self.awaited = lambda: not self.alive
            self.changed.wait_for(self.awaited, timeout=1.0)  # others are lost in the same moment: name them all
        lost = "; ".join(f"worker {death.worker} {death.reason}" for death in self.past.deaths)
        raise MachineError(f"no worker can go on: {lost}; the next call continues from the last checkpoint")

    def wait_for(self, count: int) -> None:
        """Sleep until so many gradients are done."""
        if self.counted < count:
            self.wait(lambda: self.counted >= count)

    def sample(self, number: int) -> Sample:
        """The sample with this number, from all members that live."""
        self.wait(lambda: self.shown(number))
        with self.changed:
            return self.past.samples.pop(number)

    def save(self) -> Checkpoint:
        """Everything as it is between gradients, while nobody averages; then all go on."""
        now = self._stop(SAVE)
        with self.changed:
            self.begun += self.seconds() - now.seconds
            past = self.past
            kept = Checkpoint({**now.states}, {**past.tallies}, {**past.samples}, [*past.deaths], now.seconds)
            self.paused = False
            for member in self.alive:
                self.say(member.number, "continue")
                self._grant(member)
            return kept

    def finish(self) -> Sample:
        """Once all gradients are done: every living member, after its gossip has ended."""
        self.wait_for(self.total)
        return Sample(self.trained, self._stop(FINAL).states)

    def _stop(self, occasion: int) -> Sample:
        """The living members' states, from a moment on in which none computes, while none averages.

        An averaging is in both states or in none: who has shown its own has ended what it asked, and refuses others.
        """
        self.wait(lambda: self.running)
        with self.changed:
            self.paused = True
        self.wait(self.quiet)
        with self.changed:
            self._ask(occasion)
        self.wait(lambda: self.shown(occasion))
        with self.changed:
            sample = self.past.samples[occasion] if occasion == FINAL else self.past.samples.pop(occasion)
            return Sample(sample.seconds, {number: sample.states[number] for number in sorted(self.here)})

    def close(self) -> None:
        """Let all members go; processes of our own that do not end by themselves are killed."""
        with self.changed:
            if self.closed:
                return
            self.closed = True
            orderly = self.past.samples[FINAL].states if FINAL in self.past.samples else {}
            for member in self.alive:
                self.say(member.number, "dismissed", "")
        self.closing.set()
        for member in self.members.values():
            if member.process is not None:
                member.process.join(5.0 if member.number in orderly else 0.0)
                member.process.kill()
                member.process.join()
            self.channels[member.number].hang_up()
        for thread in self.threads:
            thread.join()

    # The members' threads

    def _attend(self, number: int, first: tuple) -> None:
        """Tell a member what it needs, then hear it until its connection ends."""
        self.say(number, "begin", *first, number, self.past.states[number])
        with self.changed:
            self.heard[number] = time.monotonic()
        self.serve(number)

    def _wake(self) -> None:
        """Wake the main thread if what it waits for has come about."""
        if self.awaited is not None and self.awaited():
            self.changed.notify_all()

    def _ready(self, number: int, seconds: float, host: str, port: int) -> None:
        self.members[number].ready, self.members[number].place = seconds, (host, port)
        self._begin_if_ready()

    def _begin_if_ready(self) -> None:
        """Start all members at the same moment."""
        if not self.running and self.alive and all(m.ready for m in self.alive):
            self.running, self.begun = True, time.perf_counter()
            for member in self.alive:
                self.say(member.number, "meet", [(m.number, *m.place) for m in self.alive], self.unit())
            self._grant_all()
            self._wake()

    def _met(self, number: int, missing: list[int]) -> None:
        """A graph without one of its edges is another graph; a neighbour that is lost takes its edges along."""
        for peer in self.here.intersection(missing):
            self.apart = min(number, peer), max(number, peer)
            self._wake()

    def _progress(self, number: int, tally: dict[str, Any], busy: float) -> None:
        self._reported(number, Tally(**tally))
        if busy > self.timeout:
            self.lose(number, f"spent more than {self.timeout:g} s on one gradient")
        self._wake()

    def _shown(self, number: int, occasion: int, state: dict[str, Any]) -> None:
        self.past.samples[occasion].states[number] = own = State.of(state)
        if occasion in (SAVE, FINAL):
            self.past.tallies[number] = own.tally
        self._wake()

    def _ask(self, occasion: int) -> None:
        """Let all members show their states."""
        self.past.samples[occasion] = Sample(self.seconds())
        for member in self.alive:
            self.say(member.number, "show", occasion, occasion in (SAVE, FINAL))

    # Gradients

    def _reported(self, number: int, tally: Tally) -> None:
        before = self.counted
        self.past.tallies[number] = tally
        if before < self.counted == self.total:
            self.trained = self.seconds()
        for sample, bound in enumerate(self.samples_at):
            if before < bound <= self.counted:
                self._ask(sample)
        for member in [self.members[number]] if self.gossip else self.alive:
            self._grant(member)

    def _grant_all(self) -> None:
        for member in self.alive:
            self._grant(member)

    def _grant(self, member: Member) -> None:
        """Give a member gradients to do until it has enough for a while, or there are none left."""
        if self.paused or not self.running or member.number not in self.here:
            return
        unit, done = self.unit(), self.done(member.number)
        want = 2 + int(GRANT_SECONDS / unit)
        if member.until - done > want // 2:
            return
        if not self.gossip:
            until = min(self.total // len(self.members), min(map(self.done, self.here)) + want)
            until = max([until, *(m.until for m in self.alive)])  # a step that one takes all must take
        else:
            # towards the end in small portions, so that all end at about the same time
            want = min(want, max(1, self.pool // (2 * len(self.alive))))
            until = max(member.until, min(done + want, member.until + self.pool))
        if until > member.until:
            self.pool -= until - member.until
            member.until = until
            self.say(member.number, "grant", until, unit)

    # Losses

    def lost(self, rank: int, reason: str) -> None:
        """Go on without a member: what it had to do is handed out again, what it owes is void."""
        if self.closed:
            return
        member = self.members[rank]
        if member.process is not None:
            member.process.join(1.0 if reason == "lost its connection" else 0.0)
            if member.process.exitcode is not None and member.process.exitcode < 0:
                reason = f"was killed by {signal.Signals(-member.process.exitcode).name}"
            member.process.kill()
        self.say(rank, "dismissed", reason)
        self.channels[rank].hang_up()
        self.past.deaths.append(Death(rank, reason, round(self.seconds(), 3)))
        say(f"worker {rank} {reason}" + "; the others go on" * self.gossip)
        self.pool += member.until - self.done(rank)
        self._begin_if_ready()
        self._grant_all()
        self._wake()

    def _watch(self) -> None:
        """Ask silent members whether they are there, and give up those that do not answer."""
        while not self.closing.wait(self.timeout / 4):
            with self.changed:
                for member in self.alive:
                    limit = self.timeout if member.ready else max(self.timeout, SET_UP_SECONDS)
                    silent = time.monotonic() - self.heard[member.number]
                    if silent > limit:
                        self.lose(member.number, f"was silent for more than {limit:g} s")
                    elif silent > self.timeout / 4 and member.ready:
                        self.say(member.number, "ping")
