"""The coordinator's side of a run of processes: who does which gradient, who averages with whom, who is still there.

One thread per worker receives its messages and acts on them under one lock; one more thread notices who has been silent
for too long. Gradients are granted a few at a time, so that none waits for a message, and handed out again when the
worker that had them is lost: the total is exact.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import signal
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from unlocked.console import say
from unlocked.errors import MachineError
from unlocked.gossip.distributed.channel import GONE, Channel
from unlocked.gossip.distributed.matchmaking import Matchmaker
from unlocked.gossip.distributed.rendezvous import START_SECONDS
from unlocked.papers.acid.processes import messages
from unlocked.papers.acid.processes.checkpoint import Checkpoint, Death, Sample
from unlocked.papers.acid.processes.messages import FINAL, SAVE, Begin, Occasion, State, Tally

GRANT_SECONDS = 0.04  # gradients that are granted at a time: as many as take this long, and one more
Line = tuple[int, Connection, BaseProcess | None]  # to a worker; its process, None where somebody else started it


@dataclass
class Member:
    """A worker as the coordinator sees it."""

    number: int
    channel: Channel
    process: BaseProcess | None
    tally: Tally
    until: int  # gradients that it may do
    alive: bool = True
    ready: float = 0.0  # seconds of its first gradient, once it is set up
    heard: float = field(default_factory=time.monotonic)
    wants: bool = False  # to average, while nobody may

    @property
    def done(self) -> int:
        """Gradients that it has reported."""
        return self.tally.steps


class Coordinator:
    """A run's members, from their start to their end. Public methods are the main thread's."""

    def __init__(
        self,
        lines: Iterable[Line],
        begin: Callable[[int], Begin],
        *,
        matchmaker: Matchmaker | None,
        total: int,
        samples_at: list[int],
        timeout: float,
        past: Checkpoint,
    ) -> None:
        """`matchmaker`: None under all-reduce, where all go in step. `samples_at`: numbers of gradients at which all
        vectors are sampled. `past`: where workers start from; deaths are added to it.
        """
        self.matchmaker, self.past = matchmaker, past
        self.total, self.samples_at, self.timeout = total, samples_at, timeout
        # guards everything here; notified when what the main thread waits for is so
        self.changed = threading.Condition()
        self.awaited: Callable[[], bool] | None = None
        self.closing = threading.Event()
        self.samples: dict[Occasion, Sample] = {}
        self.paused = self.running = self.finishing = self.closed = False
        self.begun = self.trained = 0.0
        self.members = {line[0]: self._member(*line) for line in lines}
        for number in set(matchmaker.neighbours if matchmaker is not None else ()) - set(self.members):
            self._drop(number)
        self.pool = total - self.counted
        tasks: list[Callable[[], None]] = [functools.partial(self._attend, m, begin) for m in self.members.values()]
        self.threads = [threading.Thread(target=task, daemon=True) for task in (*tasks, self._watch)]
        for thread in self.threads:
            thread.start()

    def _member(self, number: int, connection: Connection, process: BaseProcess | None) -> Member:
        state = self.past.states[number]
        tally = Tally() if state is None else state.tally
        return Member(number, Channel(connection), process, tally, tally.steps)

    # What is so

    @property
    def counted(self) -> int:
        """Gradients over all workers, those of lost ones included."""
        return sum(death.tally.steps for death in self.past.deaths) + sum(member.done for member in self.alive)

    @property
    def alive(self) -> list[Member]:
        """Members that are there."""
        return [member for member in self.members.values() if member.alive]

    def unit(self) -> float:
        """Mean seconds of a gradient over all members and gradients so far."""
        tallies = [member.tally for member in self.members.values()]
        steps = sum(tally.steps for tally in tallies)
        if steps < len(tallies):
            return sum(member.ready for member in self.alive) / max(1, len(self.alive))
        return sum(tally.gradient_seconds for tally in tallies) / steps

    def quiet(self) -> bool:
        """Whether every granted gradient is done and nobody averages."""
        averaging = self.matchmaker is not None and self.matchmaker.under_way
        return not averaging and all(m.done == m.until for m in self.alive)

    def shown(self, occasion: Occasion) -> bool:
        """Whether every living member has shown its state."""
        states = self.samples[occasion].states if occasion in self.samples else {}
        return bool(self.alive) and all(member.number in states for member in self.alive)

    def broken(self) -> bool:
        """Whether the run cannot go on."""
        return not self.alive or (self.matchmaker is None and bool(self.past.deaths))

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
            return self.samples.pop(number)

    def save(self) -> Checkpoint:
        """Everything as it is between gradients, while nobody averages; then all go on."""
        self.wait(lambda: self.running)
        with self.changed:
            self.paused = True
        self.wait(self.quiet)
        begun = time.perf_counter()
        with self.changed:
            self._ask(SAVE)
        self.wait(lambda: self.shown(SAVE))
        with self.changed:
            self.begun += time.perf_counter() - begun
            states = self._living(self.samples.pop(SAVE))
            samples = {n: sample for n, sample in self.samples.items() if isinstance(n, int)}
            ended, deaths = copy.deepcopy(self.past.ended), list(self.past.deaths)
            self._go_on()
            return Checkpoint({**states}, self.past.samples | samples, ended, deaths, self.seconds())

    def _go_on(self) -> None:
        """After a pause."""
        self.paused = False
        for member in self.alive:
            self._send(member, messages.Continue())
        for member in self.alive:
            self._grant(member)
            if member.wants:
                self._pair(member)

    def finish(self) -> Sample:
        """Once all gradients are done: every living member, after its gossip has ended."""
        self.wait_for(self.total)
        with self.changed:
            self.finishing = True
        self.wait(self.quiet)
        with self.changed:
            self._ask(FINAL)
        self.wait(lambda: self.shown(FINAL))
        with self.changed:
            return Sample(self.trained, self._living(self.samples[FINAL]))

    def _living(self, sample: Sample) -> dict[int, State]:
        return {member.number: sample.states[member.number] for member in self.alive}

    def close(self) -> None:
        """Let all members go; processes of our own that do not end by themselves are killed."""
        with self.changed:
            if self.closed:
                return
            self.closed = True
            orderly = self.samples[FINAL].states if FINAL in self.samples else {}
            for member in self.alive:
                self._send(member, messages.Dismissed())
        self.closing.set()
        for member in self.members.values():
            if member.process is not None:
                member.process.join(5.0 if member.number in orderly else 0.0)
                member.process.kill()
                member.process.join()
            member.channel.hang_up()
        for thread in self.threads:
            thread.join()

    # The members' threads

    def _attend(self, member: Member, begin: Callable[[int], Begin]) -> None:
        """Send a member what it needs, then receive until its connection ends."""
        reason = "lost its connection"
        with contextlib.suppress(*GONE):
            member.channel.send(begin(member.number))
            while True:
                message = member.channel.receive()
                with self.changed:
                    member.heard = time.monotonic()
                    if isinstance(message, messages.Failed):
                        reason = f"failed ({message.reason})"
                    elif member.alive:
                        self._handle(member, message)
                    self._wake()
        with self.changed:
            if not self.closed and member.alive:
                self._lose(member, reason, ended=True)
        member.channel.close()

    def _wake(self) -> None:
        """Wake the main thread if what it waits for has come about."""
        if self.awaited is not None and self.awaited():
            self.changed.notify_all()

    def _handle(self, member: Member, message: Any) -> None:
        if isinstance(message, messages.Offer):
            self._offered(member, message)
        elif isinstance(message, messages.Progress):
            self._reported(member, message.tally)
            if message.busy > self.timeout:
                self._lose(member, f"spent more than {self.timeout:g} s on one gradient")
        elif isinstance(message, messages.Shown):
            self.samples[message.occasion].states[member.number] = message.state
            if message.occasion == FINAL:
                member.tally = message.state.tally
        elif isinstance(message, messages.Ready):
            member.ready = message.seconds
            self._begin_if_ready()

    def _begin_if_ready(self) -> None:
        """Start all members at the same moment."""
        if not self.running and all(m.ready for m in self.alive):
            self.running, self.begun = True, time.perf_counter()
            self._grant_all()

    def _ask(self, occasion: Occasion) -> None:
        """Let all members show their states."""
        self.samples[occasion] = Sample(self.seconds())
        for member in self.alive:
            self._send(member, messages.Show(occasion))

    # Gradients

    def _reported(self, member: Member, tally: Tally) -> None:
        before = self.counted
        member.tally = tally
        if before < self.counted == self.total:
            self.trained = self.seconds()
        for number, bound in enumerate(self.samples_at):
            if before < bound <= self.counted:
                self._ask(number)
        if self.matchmaker is None:
            self._grant_all()
        else:
            self._grant(member)

    def _grant_all(self) -> None:
        for member in self.alive:
            self._grant(member)

    def _grant(self, member: Member) -> None:
        """Give a member gradients to do until it has enough for a while, or there are none left."""
        if self.paused or not self.running or not member.alive:
            return
        unit = self.unit()
        want = 2 + int(GRANT_SECONDS / unit)
        if member.until - member.done > want // 2:
            return
        if self.matchmaker is None:
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

    # Gossip steps

    def _offered(self, member: Member, message: messages.Offer) -> None:
        self._reported(member, message.tally)
        if message.number is not None:
            assert self.matchmaker is not None
            failed = self.matchmaker.confirm(message.number, member.number, message.applied, message.reason)
            if failed is not None and not self.closed:
                say("workers {} and {} average no more: {}".format(*failed.pair, failed.reason))
        if message.wants:
            self._pair(member)

    def _pair(self, member: Member) -> None:
        """Find a partner for a member that wants to average."""
        assert self.matchmaker is not None
        member.wants = self.paused
        step = None if self.paused or self.finishing else self.matchmaker.arrange(member.number)
        if step is None:
            self._send(member, messages.Alone())
            return
        number, peer = step
        self._send(member, messages.Match(number, peer))
        self._send(self.members[peer], messages.Match(number, member.number))

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
        self.past.deaths.append(Death(member.number, reason, round(self.seconds(), 3), member.tally))
        say(f"worker {member.number} {reason}" + "; the others go on" * (self.matchmaker is not None))
        self.pool += member.until - member.done
        self._drop(member.number)
        self._begin_if_ready()
        self._grant_all()
        self._wake()

    def _drop(self, number: int) -> None:
        """Nobody averages with this worker any more."""
        if self.matchmaker is not None:
            self.matchmaker.drop(number)

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
        with contextlib.suppress(*GONE):
            member.channel.send(message)
