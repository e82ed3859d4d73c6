"""The pairing service of `AsyncGossip`: a process of its own that says who averages with whom, and takes means.

Rank 0 starts it. It knows no torch, does not share rank 0's interpreter lock, and outlives rank 0. Every worker has one
connection to it, served by a thread; a connection that ends is a worker that is lost; the last one ends the service.

Messages are tuples. A worker says `want` (a partner; also the number and the seconds of its gradients so far), `done`
(the number of a gossip step, whether it was applied, why not), `hold` (no more partners for now), `share` (an array to
take the mean of, seconds to wait for the others) and `leave`. The service says `match` (number of a gossip step, peer,
mean seconds of everybody's gradients or None), `alone` (a match may come later), `held` (all matches from before `hold`
have been sent), `mean` (number of workers, array) and `lost` (rank, reason).
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from typing import IO, Any, cast

import networkx as nx
import numpy as np

from unlocked.gossip.distributed.channel import GONE, Channel, proven
from unlocked.gossip.distributed.matchmaking import Matchmaker

PATIENCE = 300.0  # seconds until all workers must have come


@dataclass
class Round:
    """A mean in the making."""

    ranks: set[int] = field(default_factory=set)
    total: Any = 0.0  # float64 array, once somebody has come
    over: bool = False


class Service:
    """What is said by and to all workers. `Service._want` answers `want`, and so on."""

    def __init__(self, graph: nx.Graph, seed: int, key: bytes) -> None:
        self._key, self._matchmaker, self._round = key, Matchmaker(graph, seed), Round()
        self.changed = threading.Condition()  # guards everything here
        self.came: dict[int, Channel] = {}
        self.connected = 0
        self._here: set[int] = set()
        self._timed: dict[int, tuple[int, float]] = {}

    def welcome(self, listener: socket.socket) -> None:
        """Let workers in, for ever; who does not know the key keeps nobody else waiting."""
        while True:
            accepted, _ = listener.accept()
            threading.Thread(target=self._attend, args=[accepted], daemon=True).start()

    def _attend(self, accepted: socket.socket) -> None:
        """One worker, until its connection ends."""
        try:
            connection = proven(accepted, self._key, server=True)
            rank, channel = int.from_bytes(connection.recv_bytes(8), "big"), Channel(connection)
        except (*GONE, multiprocessing.AuthenticationError):
            return
        with self.changed:
            self.came[rank] = channel
            self._here.add(rank)
            self.connected += 1
            self.changed.notify_all()
        try:
            while True:
                word, *values = channel.receive()
                getattr(self, f"_{word}")(rank, *values)
        except GONE:
            pass
        finally:
            channel.close()
            with self.changed:
                self._lose(rank, "lost its connection")
                self.connected -= 1
                self.changed.notify_all()

    def _want(self, rank: int, *timed: Any) -> None:
        with self.changed:
            self._timed[rank] = timed
            step = self._matchmaker.arrange(rank)
            if step is None:
                self._send(rank, "alone")
                return
            number, peer = step
            gradients, seconds = map(sum, zip(*self._timed.values(), strict=True))
            for one, other in ((rank, peer), (peer, rank)):
                self._send(one, "match", number, other, seconds / gradients if gradients else None)

    def _done(self, rank: int, number: int, applied: bool, reason: str) -> None:
        with self.changed:
            self._matchmaker.confirm(number, rank, applied, reason)

    def _hold(self, rank: int) -> None:
        with self.changed:
            self._matchmaker.waiting.discard(rank)
            self._send(rank, "held")

    def _leave(self, rank: int) -> None:
        with self.changed:
            self._lose(rank, "ended")

    def _lose(self, rank: int, reason: str) -> None:
        """Go on without a worker; does nothing the second time."""
        if rank in self._here:
            self._here.remove(rank)
            self._matchmaker.drop(rank)
            for other in self._here:
                self._send(other, "lost", rank, reason)
            self._finish_if_complete()

    def _share(self, rank: int, array: np.ndarray, seconds: float) -> None:
        """Wait until all others have shared or are gone, or the time is over; the mean is of those who came."""
        with self.changed:
            current = self._round
            current.total = current.total + array.astype(np.float64)
            current.ranks.add(rank)
            self._finish_if_complete()
            if not self.changed.wait_for(lambda: current.over, seconds):
                self._finish()
        mean = (current.total / len(current.ranks)).astype(array.dtype)
        self.came[rank].send(("mean", len(current.ranks), mean))  # without the lock: it may be large

    def _finish_if_complete(self) -> None:
        if self._round.ranks and self._here <= self._round.ranks:
            self._finish()

    def _finish(self) -> None:
        """Those who come later begin another round."""
        self._round.over, self._round = True, Round()
        self.changed.notify_all()

    def _send(self, rank: int, *message: Any) -> None:
        """Send, if the worker is still there; its own thread notices if it is not."""
        with contextlib.suppress(*GONE):
            self.came[rank].send(message)


def main() -> None:
    """The service's process: what it needs comes as a line of JSON, its port goes back as a line."""
    given = json.loads(sys.stdin.readline())
    graph = nx.Graph()
    graph.add_weighted_edges_from(given["edges"])
    service = Service(graph, given["seed"], bytes.fromhex(given["key"]))
    listener = socket.create_server((given["address"], 0), backlog=len(graph))
    print(listener.getsockname()[1], flush=True)
    threading.Thread(target=service.welcome, args=[listener], daemon=True).start()
    with service.changed:
        service.changed.wait_for(lambda: len(service.came) == len(graph), PATIENCE)
        service.changed.wait_for(lambda: not service.connected)


def start(graph: nx.Graph, seed: int, address: str, key: bytes) -> int:
    """Start the service and return its port. It ends by itself, and signals to this process's group do not reach it."""
    process = subprocess.Popen(
        [sys.executable, "-c", f"from {__name__} import main; main()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    threading.Thread(target=process.wait, daemon=True).start()  # nothing is left of it when it has ended
    edges = list(graph.edges(data="weight"))
    with cast(IO, process.stdin) as its_input, cast(IO, process.stdout) as its_output:
        print(
            json.dumps({"edges": edges, "seed": seed, "address": address, "key": key.hex()}), file=its_input, flush=True
        )
        return int(its_output.readline())
