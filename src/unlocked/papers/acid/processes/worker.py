"""A worker that gossips: gradients in the main thread, gossip steps in a thread of their own.

After every gradient the worker owes some communications (a number drawn as in the simulator). While it owes more than
are arranged it asks the coordinator, which answers with a partner or with `Alone`. It asks for the next partner during
the gossip step with the last one (up to `AHEAD` are arranged), so that the way to the coordinator and back costs no
time between two exchanges. Exchanges are carried out in the order of their numbers, which is the same for all workers:
of those that wait, the one with the lowest number can always go on.

The gradient loop waits for the gossip only if the worker owes more than `BACKLOG` gradients' worth of communications
*and* one of them is being arranged or carried out; a worker without a partner never waits. It cannot wait for ever: the
coordinator answers every question at once, and an exchange ends by itself, with an error at the latest after the
timeout.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
import threading
import time
from collections import deque
from multiprocessing.connection import Connection

import torch

from unlocked.gossip.distributed import exchange
from unlocked.gossip.distributed.channel import GONE, Channel
from unlocked.gossip.schedule import communications_owed
from unlocked.papers.acid.processes import messages
from unlocked.papers.acid.processes.messages import Begin
from unlocked.papers.acid.processes.runner import Runner
from unlocked.papers.acid.processes.synchronous import Synchronous
from unlocked.papers.acid.settings import ProcessBaseline

BACKLOG = 2.0  # gradients whose communications may still be under way
AHEAD = 2  # gossip steps that are arranged: one under way and the next


class Gossiping(Runner):
    """One worker of a run with the method acid or baseline."""

    def __init__(self, begin: Begin, channel: Channel) -> None:
        super().__init__(begin, channel)
        assert isinstance(begin.run, ProcessBaseline)
        self.rate = begin.run.rate
        self.matches: deque[messages.Match] = deque()  # arranged; the first is under way
        self.asked = self.alone = False  # for a partner; and told that nobody is there yet
        self.debt = begin.state.owed if begin.state is not None else 0
        self.most_owed = BACKLOG * max(1.0, self.rate)
        self.answers |= {messages.Match: self._matched, messages.Alone: self._alone}

    def set_up(self) -> None:
        """Also the stream of debts, the peers, and the gossip thread."""
        super().set_up()
        runtime = self.run.runtime
        debts = communications_owed(self.rate, self.run.seed, self.worker)
        self.debts = itertools.islice(debts, self.tally.steps, None)
        self.peers = exchange.Peers(
            exchange.store(self.begin.store, runtime.timeout),
            self.worker,
            self.vectors.x,
            backend=runtime.backend,
            interface=runtime.interface,
            timeout=runtime.timeout,
        )
        self.gossip = threading.Thread(target=self._gossip, daemon=True)
        self.gossip.start()

    # The main thread

    def gradient(self, step: int) -> tuple[float, int, int]:
        """At the x of its start; applied to the x that there is when it is done."""
        read = self.vectors.start_gradient()
        gradient, loss = self.computed(step)
        stepped = self.vectors.descend(gradient, self.sgd.rates[step], self.sgd.decay, self.sgd.momentum)
        return loss, read, stepped

    def must_wait(self) -> bool:
        """Too much is owed, and some of it is being arranged or carried out."""
        return self.debt > self.most_owed and bool(self.matches or (self.asked and not self.alone))

    def after_gradient(self) -> None:
        """Owe what this gradient makes due, and look for a partner if there is none."""
        self.debt += next(self.debts)
        self._ask()

    def _ask(self) -> None:
        """Ask for one more partner if there is need. Only under `changed`."""
        if self._wants():
            self.channel.send(messages.Offer(self.tally.copy(), wants=True))

    def _wants(self) -> bool:
        """Whether to ask for one more partner now; then the question is as good as asked. Only under `changed`."""
        wants = not self.asked and len(self.matches) < min(AHEAD, self.debt)
        if wants:
            self.asked, self.alone = True, False
        return wants

    def owed_now(self) -> int:
        """Communications not yet done."""
        return self.debt

    def wind_down(self) -> None:
        """Let the gossip thread end, after the exchange that it may be in."""
        with self.changed:
            self.changed.notify_all()
        self.gossip.join()

    # The listener

    def _matched(self, message: messages.Match) -> None:
        with self.changed:
            self.matches.append(message)
            self.asked = False
            self._ask()
            self.changed.notify_all()

    def _alone(self, message: messages.Alone) -> None:
        with self.changed:
            if self.asked:
                self.alone = True
                self.changed.notify_all()

    # The gossip thread

    def _gossip(self) -> None:
        device = self.vectors.x.device
        stream = torch.cuda.stream(torch.cuda.Stream(device)) if device.type == "cuda" else contextlib.nullcontext()
        try:
            with stream:
                while self._gossip_step():
                    pass
        except GONE:
            pass  # the listener says so
        except Exception as error:
            self._give_up(error)

    def _gossip_step(self) -> bool:
        """Wait for the next gossip step and do it; False when there is none any more."""
        idle_from = time.thread_time()
        with self.changed:
            self.changed.wait_for(lambda: self.matches or self.finishing or self.over)
            if not self.matches:
                return False
            match = self.matches[0]
        self.tally.overhead_cpu_seconds += time.thread_time() - idle_from
        reason = self._average_with(match.peer)
        applied = not reason
        with self.changed:
            self.debt -= applied
            self.matches.popleft()
            self.channel.send(messages.Offer(self.tally.copy(), self._wants(), match.number, applied, reason))
            self.changed.notify_all()
        return True

    def _average_with(self, peer: int) -> str:
        """One averaging. If the exchange failed nothing has changed, and the reason is returned."""
        cpu, begun = time.thread_time(), time.perf_counter()
        sent = self.vectors.offer()
        try:
            self.peers.exchange(peer, sent, self.vectors.received)
        except RuntimeError as error:
            return str(error).splitlines()[0] or "no reason given"
        transferred = time.perf_counter()
        self.vectors.average()
        with self.changed:
            self.tally.averagings += 1
            self.tally.transfer_seconds += transferred - begun
            self.tally.useful_cpu_seconds += time.thread_time() - cpu
        return ""


def ignore_stops() -> None:
    """Leave SIGTERM and SIGINT, which reach all processes of a job, to the coordinator: it checkpoints its workers."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def main(connection: Connection) -> None:
    """The life of a worker process that the coordinator started: one run."""
    ignore_stops()
    take_part(Channel(connection))


def take_part(channel: Channel) -> bool:
    """Take part in one run; False if there is none any more."""
    begin = channel.receive()
    if isinstance(begin, messages.Dismissed):
        return False
    kind = Gossiping if isinstance(begin.run, ProcessBaseline) else Synchronous
    kind(begin, channel).run_to_end()
    return True
