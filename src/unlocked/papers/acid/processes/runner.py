"""What every worker process does, whatever it trains by: listen, do the gradients it is granted, report, end.

`worker` adds gossip, `synchronous` all-reduce. The gradient loop is the main thread. A second thread listens to the
coordinator all the time (see `coordinator` for what is said), so that questions are answered while a gradient is under
way. Nothing here waits by looking again and again: threads sleep on a condition or in a blocking receive.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unlocked.console import say
from unlocked.gossip.distributed.rendezvous import interface_address
from unlocked.gossip.distributed.vectors import Vectors
from unlocked.gossip.distributed.wire import GONE, Channel
from unlocked.gossip.workers import Networks
from unlocked.papers.acid import common
from unlocked.papers.acid.constants import constants_of, dynamics_of
from unlocked.papers.acid.processes.state import State, Tally, count
from unlocked.papers.acid.settings import ProcessRun
from unlocked.seeding import deterministic_kernels
from unlocked.vision.data import Dataset

WARM_UP = 6  # gradients before the start
SECONDS_BETWEEN_REPORTS = 0.01  # fast gradients share a report; slow ones have one each


def device_of(device: str, worker: int) -> str:
    """Workers on one machine share its GPUs in turn, unless the setting names one."""
    if device != "cuda":
        return device
    return f"cuda:{int(os.environ.get('LOCAL_RANK', worker)) % torch.cuda.device_count()}"


@dataclass(frozen=True)
class Begin:
    """Everything that a worker needs."""

    run: ProcessRun
    data: Dataset
    worker: int
    key: bytes
    store: tuple[str, int]  # host and port of the key-value store that all workers share, for all-reduce
    start: Tensor  # (d,): the vector that all start from
    state: State | None  # to continue from


class Runner:
    """One worker of one run. `run_to_end` does everything; the methods without a body are the method's own."""

    def __init__(self, begin: Begin, channel: Channel) -> None:
        self.begin, self.channel, self.worker = begin, channel, begin.worker
        self.run = begin.run
        self.changed = threading.Condition()  # guards what the threads share
        self.until = 0
        self.started = self.over = False
        self.busy_since: float | None = None
        self.paused_at: float | None = None
        self.ended: float | None = None  # when the last gradient ended
        self.stepped = 0  # averagings until then
        self.reported = 0.0
        self.tally = begin.state.tally if begin.state is not None else Tally()
        self.answers: dict[str, Callable[..., None]] = {
            "meet": self.meet,
            "grant": self._granted,
            "hold": self._hold,
            "show": self._show,
            "continue": self._continue,
            "ping": self._ping,
            "dismissed": self._dismissed,
        }

    # Set-up

    def set_up(self) -> None:
        """Data, network and vectors; where they come from is the same as in the simulator."""
        torch.set_num_threads(self.run.runtime.threads)
        deterministic_kernels()
        device = device_of(self.run.runtime.device, self.worker)
        here = dataclasses.replace(self.run, runtime=dataclasses.replace(self.run.runtime, device=device))
        self.data = self.begin.data.to(device)
        self.streams = common.streams_of(here, self.data)
        self.vectors = Vectors(self.begin.start.to(device), constants_of(here), dynamics_of(here), self.changed)
        model = common.build_model(here, self.data)
        # the parameters of this worker's network are views of the copy that gradients are taken at; by autograd, as
        # DistributedDataParallel's are, so that real times compare methods and nothing else
        vectors = self.vectors.read[None]
        self.networks = Networks(model, self.data, self.streams, vectors, here.optim.clip, written_out=False)
        self.sgd = common.sgd_of(here, model, here.total_gradients)
        self.slowdown = here.clock.slow_factor if self.worker < here.clock.slow_workers else 1.0
        self.pause = 0.0  # seconds that a slow worker sleeps at every gradient; known after the warm-up

    def restore(self, state: State) -> None:
        """Continue from a checkpoint."""
        self.vectors.restore(state.x, state.x_tilde, state.m)
        self.vectors.averagings = self.stepped = state.tally.averagings
        self.networks.restore([state.buffers])

    def warm_up(self) -> float:
        """Seconds of a gradient, the fastest of a few after one that does not count; leaves no trace.

        From here on a slow worker sleeps, at every gradient, as long as makes it slower by its factor when it is alone
        on its core: a fixed time, the same under gossip and all-reduce, because time measured later contains waiting.
        """
        before = self._buffers()
        measured = []
        for _ in range(WARM_UP):
            begun = time.perf_counter()
            self.computed(0)
            measured.append(time.perf_counter() - begun)
        self.networks.restore([before])
        alone = min(measured[1:])
        self.pause = (self.slowdown - 1) * alone
        return alone + self.pause

    def computed(self, step: int) -> tuple[Tensor, float]:
        """Gradient (d,) of this worker's `step`-th batch at `vectors.read`, and its loss; a slow worker sleeps."""
        images, labels = self.streams.batches(self.data, [self.worker], [step])
        gradient, loss = self.networks.one(0, (images[0], labels[0]))
        value = float(loss)  # on a GPU this waits until the gradient is done
        if self.pause:
            time.sleep(self.pause)
        return gradient, value

    # The life of a worker

    def run_to_end(self) -> None:
        """Set up, train while there is something to do, send the final state; returns when the coordinator lets go."""
        threading.Thread(target=self._listen, daemon=True).start()
        try:
            self.set_up()
            seconds = self.warm_up()
            if self.begin.state is not None:
                self.restore(self.begin.state)
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
        return self.over or (self.tally.steps < self.until and not self.must_wait())

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

    def _report(self, force: bool = False) -> None:
        """Send the tally, from time to time. Only while `changed` is held."""
        now = time.perf_counter()
        if force or now - self.reported > SECONDS_BETWEEN_REPORTS:
            self.reported = now
            self.channel.send("progress", self.counted(), 0.0)

    def _give_up(self, error: Exception) -> None:
        """Say what went wrong to the coordinator and to a person."""
        traceback.print_exception(error)
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0] if lines else ''}"
        say(f"worker {self.worker}: {reason}")
        with contextlib.suppress(*GONE):
            self.channel.send("failed", reason)
        os._exit(1)

    # The listener

    def _listen(self) -> None:
        try:
            while not self.over:
                word, *values = self.channel.receive()
                self.answers[word](*values)
        except GONE:
            say(f"worker {self.worker}: the coordinating process is gone: this worker ends")
            os._exit(1)
        except Exception as error:
            self._give_up(error)

    def _dismissed(self, reason: str) -> None:
        if reason:
            say(f"worker {self.worker}: the others go on without this worker: {reason}")
        with self.changed:
            self.over = True
            self.changed.notify_all()

    def _granted(self, until: int, unit: float) -> None:
        with self.changed:
            if not self.started:
                self.started = True
                self.vectors.begin(unit, self.begin.state.age if self.begin.state is not None else 0.0)
            self.vectors.unit, self.until = unit, until
            self.changed.notify_all()

    def _hold(self) -> None:
        self.hold()
        self.paused_at = time.perf_counter()
        self.channel.send("held")

    def _show(self, occasion: Any) -> None:
        self.channel.send("shown", occasion, self.state())

    def _continue(self) -> None:
        assert self.paused_at is not None
        pause = time.perf_counter() - self.paused_at
        self.vectors.pass_over(pause)
        with self.changed:
            self.tally.idle_seconds -= pause  # the gradient loop, which waits, will have counted it
            if self.ended is not None:
                self.ended += pause
        self.go_on()

    def _ping(self) -> None:
        with self.changed:
            busy = 0.0 if self.busy_since is None else time.perf_counter() - self.busy_since
            self.channel.send("progress", self.counted(), busy)

    def _buffers(self) -> dict[str, Tensor]:
        """BatchNorm statistics, on the CPU."""
        return {name: buffer.detach().cpu().clone() for name, buffer in self.networks.buffers()[0].items()}

    def state(self) -> State:
        """The whole worker, at any time."""
        vectors = self.vectors.copies()
        with self.changed:
            owed, tally = self.owed_now(), self.counted()
        return State(*vectors, owed=owed, buffers=self._buffers(), tally=tally)

    # What a method adds

    def gradient(self, step: int) -> tuple[float, int, int]:
        """Compute and apply one gradient: its loss, and the averagings until its read and until its step."""
        raise NotImplementedError

    def connect(self, host: str) -> int:
        """Find the other workers, or listen for them; returns the port."""
        raise NotImplementedError

    def meet(self, places: list[tuple[int, str, int]]) -> None:
        """Connect to the other workers, whose numbers, hosts and ports these are."""

    def counted(self) -> Tally:
        """A copy of the tally."""
        return self.tally.copy()

    def hold(self) -> None:
        """No more averagings from now on."""

    def go_on(self) -> None:
        """The inverse of `hold`."""

    def must_wait(self) -> bool:
        """Whether the next gradient has to wait for communication. Asked while `changed` is held."""
        return False

    def owed_now(self) -> int:
        """Communications not yet done."""
        return 0

    def wind_down(self) -> None:
        """End all communication."""
