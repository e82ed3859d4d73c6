"""A worker that gossips: gradients in the main thread, pair averagings in a thread of their own.

Beside the engine of processes. After every gradient the worker owes some communications (a number drawn as in the
virtual engine). While it owes more than are arranged it asks the coordinator, which answers with a partner or with
`Alone`. It asks for the next partner while it still talks to the last one (up to `AHEAD` are arranged), so that the way
to the coordinator and back costs no time between two exchanges. Exchanges are carried out in the order of their
numbers, which is the same for all workers: of those that wait, the one with the lowest number can always go on.

The gradient loop waits for the gossip only if the worker owes more than `BACKLOG` gradients' worth of communications
*and* one of them is being arranged or carried out; a worker without a partner never waits. It cannot wait for ever: the
coordinator answers every question at once, and an exchange ends by itself, with an error at the latest after the
timeout.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from typing import Any

import torch

from unlocked.gossip.processes import messages, pairs
from unlocked.gossip.processes.messages import GONE, Begin, Channel
from unlocked.gossip.processes.runner import Runner
from unlocked.gossip.processes.synchronous import Synchronous
from unlocked.gossip.schedule import communications_owed

BACKLOG = 2.0  # gradients whose communications may still be under way
AHEAD = 2  # exchanges that are arranged: one under way and the next


class Gossiping(Runner):
    """One worker of a run with the method acid or baseline."""

    def __init__(self, begin: Begin, channel: Channel) -> None:
        super().__init__(begin, channel)
        self.matches: deque[messages.Match] = deque()  # arranged; the first is under way
        self.asked = self.alone = False  # for a partner; and told that nobody is there yet
        self.debt = begin.state.owed if begin.state is not None else 0
        self.most_owed = BACKLOG * max(1.0, self.run.rate)
        self.answers |= {messages.Match: self._matched, messages.Alone: self._alone}

    def set_up(self) -> None:
        """Also the stream of debts, the lines to the peers, and the gossip thread."""
        super().set_up()
        run = self.run
        debts = communications_owed(run.owed, run.rate, run.seed, self.worker)
        self.debts = itertools.islice(debts, self.tally.steps, None)
        timeout = float(run.runtime.timeout)
        self.pairs = pairs.Pairs(
            pairs.store(self.begin.store, timeout),
            self.worker,
            self.vectors.x,
            backend=run.runtime.backend,
            interface=run.runtime.interface,
            timeout=timeout,
        )
        self.gossip = threading.Thread(target=self._gossip, name="gossip", daemon=True)
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
        if self._wants():
            self.channel.send(messages.Offer(self.tally.steps, wants=True))

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
            if self._wants():
                self.channel.send(messages.Offer(self.tally.steps, wants=True))
            self.changed.notify_all()

    def _alone(self, message: messages.Alone) -> None:
        with self.changed:
            if self.asked:
                self.alone = True
                self.changed.notify_all()

    # The gossip thread

    def _gossip(self) -> None:
        try:
            if self.vectors.x.is_cuda:
                with torch.cuda.stream(torch.cuda.Stream(self.vectors.x.device)):
                    self._talk_until_told()
            else:
                self._talk_until_told()
        except GONE:
            pass  # the listener says so
        except Exception as error:
            self._give_up(error)

    def _talk_until_told(self) -> None:
        while True:
            idle_from = time.thread_time()
            with self.changed:
                self.changed.wait_for(lambda: self.matches or self.finishing or self.over)
                if not self.matches:
                    return
                match = self.matches[0]
            self.tally.overhead_cpu_seconds += time.thread_time() - idle_from
            reason = self._talk(match.peer)
            applied = not reason
            with self.changed:
                self.debt -= applied
                self.matches.popleft()
                self.channel.send(messages.Offer(self.tally.steps, self._wants(), match.number, applied, reason))
                self.changed.notify_all()

    def _talk(self, peer: int) -> str:
        """One averaging. If the exchange failed nothing has changed, and the reason is returned."""
        cpu, begun = time.thread_time(), time.perf_counter()
        sent = self.vectors.offer()
        try:
            self.pairs.exchange(peer, sent, self.vectors.received)
        except RuntimeError as error:
            return str(error).splitlines()[0] or "no reason given"
        transferred = time.perf_counter()
        self.vectors.average()
        with self.changed:
            self.tally.averagings += 1
            self.tally.transfer_seconds += transferred - begun
            self.tally.useful_cpu_seconds += time.thread_time() - cpu
        return ""


def main(connection: Any) -> None:
    """The life of a worker process that the coordinator started: one run."""
    from unlocked.gossip.processes import launch

    launch.ignore_stops()
    channel = Channel(connection)
    follow(channel)


def follow(channel: Channel) -> bool:
    """Take part in one run; False if there is none any more."""
    begin = channel.receive()
    if isinstance(begin, messages.Dismissed):
        return False
    kind = Synchronous if begin.run.method == "allreduce" else Gossiping
    kind(begin, channel).run_to_end()
    return True
