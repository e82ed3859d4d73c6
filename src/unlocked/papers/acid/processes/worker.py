"""A worker process: gradients in the main thread, averagings beside them (`gossip.distributed.averaging`).

A second thread listens to the coordinator all the time (see `coordinator` for what is said), so that questions are
answered while a gradient is under way. Nothing here waits by looking again and again: threads sleep on a condition or
in a blocking receive.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import networkx as nx
import torch
from torch import Tensor

from unlocked.console import say
from unlocked.errors import named
from unlocked.gossip import topology
from unlocked.gossip.distributed.averaging import Averaging
from unlocked.gossip.distributed.rendezvous import interface_address
from unlocked.gossip.distributed.vectors import Vectors
from unlocked.gossip.distributed.wire import GONE, Channel, start_thread
from unlocked.gossip.workers import Networks
from unlocked.papers.acid import common, gossip
from unlocked.papers.acid.processes.state import State, Tally, count
from unlocked.papers.acid.settings import Gossip, ProcessRun
from unlocked.seeding import deterministic_kernels
from unlocked.vision.data import Dataset

WARM_UP = 6  # gradients before the start
SECONDS_BETWEEN_REPORTS = 0.01  # fast gradients share a report; slow ones have one each


def device_of(device: str, worker: int) -> str:
    """Workers on one machine share its GPUs in turn, unless the setting names one."""
    if device != "cuda":
        return device
    return f"cuda:{int(os.environ.get('LOCAL_RANK', worker)) % torch.cuda.device_count()}"


class Worker:
    """One worker of one run. `run_to_end` does everything. A run without a graph gives it nobody to average with."""

    def __init__(
        self, channel: Channel, run: ProcessRun, data: Dataset, number: int, key: bytes, store: tuple[str, int],
        start: Tensor, past: State | None,
    ) -> None:  # fmt: skip
        """`key`: what other workers know. `store`: host and port of the store through which all-reduce's workers find
        each other. `start` (d,): what all start from. `past`: a state to continue from."""
        self.channel, self.run, self.data, self.number = channel, run, data, number
        self.key, self.store, self.start, self.past = key, store, start, past
        self.changed = threading.Condition()  # guards what the threads share
        self.until, self.over = 0, False
        self.introduced = False  # to its neighbours
        self.busy_since: float | None = None
        self.stopped_at = 0.0  # when averagings were last halted
        self.ended: float | None = None  # when the last gradient ended
        self.stepped = 0  # averagings until then
        self.reported = 0.0
        self.tally = Tally() if past is None else past.tally
        self.before = dataclasses.replace(self.tally)
        self.answers: dict[str, Callable[..., None]] = {
            "meet": self._meet,
            "grant": self._granted,
            "show": self._show,
            "continue": self._continue,
            "ping": self._ping,
            "dismissed": self._dismissed,
        }

    # Set-up

    def set_up(self) -> None:
        """Network, streams and vectors; where they come from is the same as in the simulator."""
        device = device_of(self.run.runtime.device, self.number)
        runtime = dataclasses.replace(self.run.runtime, device=device)
        self.run = run = dataclasses.replace(self.run, runtime=runtime)
        torch.set_num_threads(runtime.threads)
        deterministic_kernels()
        self.data = self.data.to(device)
        self.streams = common.streams_of(run, self.data)
        self.vectors = Vectors(self.start.to(device), gossip.constants_of(run), gossip.dynamics_of(run), self.changed)
        graph, rate = nx.empty_graph(run.workers), 0.0
        if isinstance(run, Gossip):
            graph, rate = topology.build(run.graph, run.workers, run.seed), run.rate
        self.averaging = Averaging(
            self.vectors, graph, self.number, rate=rate, seed=run.seed, key=self.key, timeout=runtime.timeout
        )
        model = common.build_model(run, self.data)
        # the parameters of this worker's network are views of the copy that gradients are taken at; by autograd, as
        # DistributedDataParallel's are, so that real times compare methods and nothing else
        read = self.vectors.read[None]
        self.networks = Networks(model, self.data, self.streams, read, run.optim.clip, written_out=False)
        self.sgd = common.sgd_of(run, model, run.total_gradients)

    def warm_up(self) -> float:
        """Seconds of a gradient, the fastest of a few after one that does not count; leaves no trace.

        From here on a slow worker sleeps, at every gradient, as long as makes it slower by its factor when it is alone
        on its core: a fixed time, the same under gossip and all-reduce, because time measured later contains waiting.
        """
        self.pause, before, measured = 0.0, self._buffers(), []
        for _ in range(WARM_UP):
            begun = time.perf_counter()
            self.computed(0)
            measured.append(time.perf_counter() - begun)
        self.networks.restore([before])
        alone, clock = min(measured[1:]), self.run.clock
        self.pause = (clock.slow_factor - 1) * alone if self.number < clock.slow_workers else 0.0
        return alone + self.pause

    def restore(self, state: State) -> None:
        """Continue from a checkpoint."""
        self.vectors.restore(state.x, state.x_tilde, state.m)
        self.vectors.averagings = self.stepped = state.tally.averagings
        self.networks.restore([state.buffers])
        self.averaging.skip(state.tally.steps)
        self.averaging.owed = state.owed
        self.averaging.asked.update(dict(enumerate(state.tally.asked)))
        self.averaging.answered.update(dict(enumerate(state.tally.answered)))

    def computed(self, step: int) -> tuple[Tensor, float]:
        """Gradient (d,) of this worker's `step`-th batch at `vectors.read`, and its loss; a slow worker sleeps."""
        images, labels = self.streams.batches(self.data, [self.number], [step])
        gradient, loss = self.networks.one(0, (images[0], labels[0]))
        value = float(loss)  # on a GPU this waits until the gradient is done
        if self.pause:
            time.sleep(self.pause)
        return gradient, value

    # What a method may do otherwise

    def connect(self, host: str) -> int:
        """Listen for the other workers; returns the port."""
        return self.averaging.connect(host)

    def gradient(self, step: int) -> tuple[float, int, int]:
        """Taken at the x of its start, applied to the x that there is when it is done.

        Its loss, and the averagings until its read and until its step.
        """
        read = self.vectors.start_gradient()
        gradient, loss = self.computed(step)
        return loss, read, self.averaging.after_step(lambda: self.descend(gradient, step))

    def descend(self, gradient: Tensor, step: int) -> int:
        """Apply the `step`-th gradient; returns the number of averagings so far."""
        return self.vectors.descend(gradient, self.sgd.rates[step], self.sgd.decay, self.sgd.momentum)

    def wind_down(self) -> None:
        """End all communication with other workers."""
        self.averaging.close()

    # The main thread

    def run_to_end(self) -> None:
        """Set up, train while there is something to do, send the final state; returns when the coordinator lets go."""
        start_thread(self._listen)
        try:
            self.set_up()
            seconds = self.warm_up()
            if self.past is not None:
                self.restore(self.past)
            host = interface_address(self.run.runtime.interface)
            self.channel.send("ready", seconds, host, self.connect(host))
            while self._turn():
                self._do_gradient()
            self.wind_down()
        except GONE:
            pass  # the listener knows more
        except Exception as error:
            self._give_up(error)
        with self.changed:
            self.changed.wait_for(lambda: self.over)

    def _turn(self) -> bool:
        """Wait until a gradient may be done; False when there is none left."""
        with self.changed:
            if not self._may_go():
                begun = time.perf_counter()
                self.busy_since = None
                if self.tally.steps == self.until:
                    self._report(force=True)
                self.changed.wait_for(self._may_go)
                if self.ended is not None:  # not the wait for the common start
                    self.tally.idle_seconds += time.perf_counter() - begun
            if self.busy_since is None:
                self.busy_since = time.perf_counter()
            return not self.over

    def _may_go(self) -> bool:
        """Whether there is a gradient to do, and not too much gossip under way."""
        ready = self.introduced and not self.averaging.must_wait()
        return self.over or (ready and self.tally.steps < self.until)

    def _do_gradient(self) -> None:
        """One gradient and its step."""
        begun = time.perf_counter() if self.ended is None else self.ended
        loss, read, stepped = self.gradient(self.tally.steps)
        self.ended = time.perf_counter()
        with self.changed:
            self.tally.steps += 1
            self.tally.loss_sum += loss
            self.tally.gradient_seconds += self.ended - begun
            count(self.tally.staleness, stepped - read)
            count(self.tally.between, stepped - self.stepped)
            self.stepped = stepped
            self.busy_since = self.ended
            self._report()

    def _give_up(self, error: Exception) -> None:
        """Say what went wrong to the coordinator and to a person."""
        traceback.print_exception(error)
        reason = named(error)
        say(f"worker {self.number}: {reason}")
        with contextlib.suppress(*GONE):
            self.channel.send("failed", reason)
        os._exit(1)

    # Either thread, while `changed` is held

    def _report(self, force: bool = False, busy: float = 0.0) -> None:
        """Send the tally, from time to time; `busy`: seconds that the current gradient has taken."""
        now = time.perf_counter()
        if force or now - self.reported > SECONDS_BETWEEN_REPORTS:
            self.reported = now
            self.channel.send("progress", self._counted(), busy)

    def _counted(self) -> Tally:
        """The tally, with what the averagings have counted since this process began."""
        own, before, tally, workers = self.averaging, self.before, self.tally, range(self.run.workers)
        tally.asked, tally.answered = [own.asked[k] for k in workers], [own.answered[k] for k in workers]
        tally.averagings = sum(tally.asked) + sum(tally.answered)
        tally.in_vain = before.in_vain + own.in_vain
        tally.transfer_seconds = before.transfer_seconds + own.seconds
        tally.useful_cpu_seconds = before.useful_cpu_seconds + own.useful_cpu
        tally.overhead_cpu_seconds = before.overhead_cpu_seconds + own.overhead_cpu
        return tally

    # The listener

    def _listen(self) -> None:
        try:
            while not self.over:
                word, *values = self.channel.receive()
                self.answers[word](*values)
        except GONE:
            say(f"worker {self.number}: the coordinating process is gone: this worker ends")
            os._exit(1)
        except Exception as error:
            self._give_up(error)

    def _dismissed(self, reason: str) -> None:
        if reason:
            say(f"worker {self.number}: the others go on without this worker: {reason}")
        with self.changed:
            self.over = True
            self.changed.notify_all()

    def _meet(self, places: list[tuple[int, str, int]], unit: float) -> None:
        self.vectors.begin(unit, 0.0 if self.past is None else self.past.age)
        start_thread(self._find, {worker: (host, port) for worker, host, port in places})

    def _find(self, places: dict[int, tuple[str, int]]) -> None:
        """Connect to the neighbours, in a thread of its own; gradients begin when all are there.

        One that hangs is missed after the coordinator has given it up.
        """
        try:
            self.averaging.meet(places)
            missing = self.averaging.missing({*places}, 2 * self.averaging.timeout)
            self.channel.send("met", missing)
            self.averaging.resume()
        except GONE:
            return  # the listener knows more
        except Exception as error:
            self._give_up(error)
        with self.changed:
            self.introduced = True
            self.changed.notify_all()

    def _granted(self, until: int, unit: float) -> None:
        with self.changed:
            self.vectors.unit, self.until = unit, until
            self.changed.notify_all()

    def _show(self, occasion: Any, halt: bool) -> None:
        """`halt`: no averagings from here to `continue`."""
        if halt:
            with self.changed:
                self.changed.wait_for(lambda: self.introduced)
            self.averaging.hold()
            self.stopped_at = time.perf_counter()
        vectors, buffers = self.vectors.copies(), self._buffers()
        with self.changed:
            owed, tally = self.averaging.owed, copy.deepcopy(self._counted())
        self.channel.send("shown", occasion, State(*vectors, owed=owed, buffers=buffers, tally=tally))

    def _continue(self) -> None:
        pause = time.perf_counter() - self.stopped_at
        self.vectors.pass_over(pause)
        with self.changed:
            self.tally.idle_seconds -= pause  # the gradient loop, which waits, will have counted it
            if self.ended is not None:
                self.ended += pause
        self.averaging.resume()

    def _ping(self) -> None:
        with self.changed:
            busy = 0.0 if self.busy_since is None else time.perf_counter() - self.busy_since
            self._report(force=True, busy=busy)

    def _buffers(self) -> dict[str, Tensor]:
        """BatchNorm statistics, on the CPU."""
        return {name: buffer.detach().cpu().clone() for name, buffer in self.networks.statistics[0].items()}
