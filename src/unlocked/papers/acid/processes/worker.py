"""A worker that gossips: gradients in the main thread, averagings beside them (`gossip.distributed.averaging`)."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from unlocked.gossip import topology
from unlocked.gossip.distributed.averaging import Averaging
from unlocked.gossip.distributed.wire import Channel
from unlocked.papers.acid.processes.runner import Begin, Runner
from unlocked.papers.acid.processes.state import State, Tally
from unlocked.papers.acid.processes.synchronous import Synchronous
from unlocked.papers.acid.settings import ProcessBaseline, ProcessRun
from unlocked.vision.data import Dataset

Find = Callable[[str], tuple[ProcessRun, Dataset]]  # a run and its data, by the run's id


class Gossiping(Runner):
    """One worker of a run with the method acid or baseline."""

    def connect(self, host: str) -> int:
        """Listen for neighbours, and take up the counts of a run that is continued."""
        run, state = self.run, self.begin.state
        assert isinstance(run, ProcessBaseline)
        graph = topology.build(run.graph, run.workers, run.seed)
        self.averaging = own = Averaging(
            self.vectors,
            graph,
            self.worker,
            rate=run.rate,
            seed=run.seed,
            key=self.begin.key,
            timeout=run.runtime.timeout,
        )
        self.before = replace(self.tally)
        if state is not None:
            own.owed = state.owed
            own.asked.update(dict(enumerate(self.tally.asked)))
            own.answered.update(dict(enumerate(self.tally.answered)))
        return own.connect(host)

    def meet(self, places: list[tuple[int, str, int]]) -> None:
        self.averaging.meet({worker: (host, port) for worker, host, port in places})
        self.averaging.begin(self.tally.steps)

    def gradient(self, step: int) -> tuple[float, int, int]:
        """At the x of its start; applied to the x that there is when it is done."""
        read = self.vectors.start_gradient()
        gradient, loss = self.computed(step)
        stepped = self.averaging.after_step(lambda: self._descend(gradient, step))
        return loss, read, stepped

    def _descend(self, gradient: Tensor, step: int) -> int:
        return self.vectors.descend(gradient, self.sgd.rates[step], self.sgd.decay, self.sgd.momentum)

    def counted(self) -> Tally:
        own, before, tally, workers = self.averaging, self.before, self.tally, range(self.run.workers)
        tally.asked, tally.answered = [own.asked[k] for k in workers], [own.answered[k] for k in workers]
        tally.averagings = sum(tally.asked) + sum(tally.answered)
        tally.in_vain = before.in_vain + own.in_vain
        tally.transfer_seconds = before.transfer_seconds + own.seconds
        tally.useful_cpu_seconds = before.useful_cpu_seconds + own.useful_cpu + own.asking_cpu
        tally.overhead_cpu_seconds = before.overhead_cpu_seconds + max(0.0, own.cpu - own.useful_cpu)
        return super().counted()

    def must_wait(self) -> bool:
        """Too much is owed, and some of it is under way."""
        return self.averaging.must_wait()

    def owed_now(self) -> int:
        return self.averaging.owed

    def hold(self) -> None:
        self.averaging.hold()

    def go_on(self) -> None:
        self.averaging.resume()

    def wind_down(self) -> None:
        self.averaging.close()


def ignore_stops() -> None:
    """Leave SIGTERM and SIGINT, which reach all processes of a job, to the coordinator: it checkpoints its workers."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def main(line: socket.socket, run: ProcessRun, data: Dataset) -> None:
    """The life of a worker process that the coordinator started: one run."""
    ignore_stops()
    take_part(Channel(line), lambda _: (run, data))


def take_part(channel: Channel, find: Find) -> bool:
    """Take part in one run; False if there is none any more."""
    word, *values = channel.receive()
    if word == "dismissed":
        return False
    run, worker, key, store, start, state = values
    begin = Begin(
        *find(run), worker, bytes.fromhex(key), tuple(store), torch.as_tensor(start), state and State.of(state)
    )
    kind = Gossiping if isinstance(begin.run, ProcessBaseline) else Synchronous
    kind(begin, channel).run_to_end()
    return True
