"""The service of `AsyncGossip`: a process of its own that knows who is there, takes means, and knows how long a
gradient takes over all workers.

Rank 0 starts it. It knows no torch, does not share rank 0's interpreter lock, and outlives rank 0. The last worker that
goes ends it. A worker says `timed` (number and seconds of its gradients so far; answered by `unit`), `share` (which of
its own this is, an array to take the mean of, seconds to wait for the others; answered by `mean`: which, number of
workers, array) and `leave`. The service says `lost` (rank, reason) to the others. Each worker is sent what is for it by
a thread of its own: one that reads nothing keeps nobody waiting.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import IO, Any, cast

import numpy as np

from unlocked.gossip.distributed.hub import Hub
from unlocked.gossip.distributed.wire import GONE, admit, introduced, start_thread

PATIENCE = 300.0  # seconds until all workers must have come


@dataclass
class Round:
    """A mean in the making."""

    ranks: set[int] = field(default_factory=set)
    total: Any = 0.0  # float64 array, once somebody has come
    over: bool = False


class Service(Hub):
    """What is said by and to all workers."""

    def __init__(self, key: bytes) -> None:
        super().__init__()
        self.answers = {"timed": self._timed, "share": self._share, "leave": self._leave}
        self._key, self._round, self._times = key, Round(), dict[int, tuple[int, float]]()
        self._posts: dict[int, SimpleQueue[tuple[Any, ...]]] = {}

    def welcome(self, sock: socket.socket) -> None:
        """Let a worker in, and hear it until it goes."""
        with contextlib.suppress(*GONE):
            channel, (rank,) = introduced(sock, self._key, server=True)
            self._posts[rank] = SimpleQueue()
            self.join(rank, channel)
            start_thread(self._post, rank)
            self.serve(rank)

    def say(self, rank: int, *message: Any) -> None:
        """Send, as soon as the worker has read what was sent before."""
        self._posts[rank].put(message)

    def _post(self, rank: int) -> None:
        while True:
            super().say(rank, *self._posts[rank].get())

    def _timed(self, rank: int, gradients: int, seconds: float) -> None:
        self._times[rank] = gradients, seconds
        gradients, seconds = map(sum, zip(*self._times.values(), strict=True))
        self.say(rank, "unit", seconds / gradients)

    def _leave(self, rank: int) -> None:
        self.lose(rank, "ended")

    def lost(self, rank: int, reason: str) -> None:
        for other in self.here:
            self.say(other, "lost", rank, reason)
        self._finish_if_complete()

    def _share(self, rank: int, which: int, array: np.ndarray, seconds: float) -> None:
        """Wait until all others have shared or are gone, or the time is over; the mean is of those who came."""
        current = self._round
        current.total = current.total + array.astype(np.float64)
        current.ranks.add(rank)
        self._finish_if_complete()
        if not self.changed.wait_for(lambda: current.over, seconds):
            self._finish()
        self.say(rank, "mean", which, len(current.ranks), (current.total / len(current.ranks)).astype(array.dtype))

    def _finish_if_complete(self) -> None:
        if self._round.ranks and self.here <= self._round.ranks:
            self._finish()

    def _finish(self) -> None:
        """Those who come later begin another round."""
        self._round.over, self._round = True, Round()
        self.changed.notify_all()


def main() -> None:
    """The service's process: what it needs comes as a line of JSON, its port goes back as a line."""
    given = json.loads(sys.stdin.readline())
    service = Service(bytes.fromhex(given["key"]))
    listener = socket.create_server((given["address"], 0), backlog=given["workers"])
    print(listener.getsockname()[1], flush=True)
    start_thread(admit, listener, service.welcome)
    with service.changed:
        service.changed.wait_for(lambda: len(service.channels) == given["workers"], PATIENCE)
        service.changed.wait_for(lambda: not service.here)


def start(workers: int, address: str, key: bytes) -> int:
    """Start the service and return its port. It ends by itself, and signals to this process's group do not reach it."""
    process = subprocess.Popen(
        [sys.executable, "-c", f"from {__name__} import main; main()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    start_thread(process.wait)  # nothing is left of it when it has ended
    with cast(IO, process.stdin) as its_input, cast(IO, process.stdout) as its_output:
        print(json.dumps({"workers": workers, "address": address, "key": key.hex()}), file=its_input, flush=True)
        return int(its_output.readline())
