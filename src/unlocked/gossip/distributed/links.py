"""A worker's connections to its neighbours, and the thread that waits for what they say.

The lower rank listens, the higher one comes; both prove that they know the key, and map each other's memory if they are
on one host. One thread sleeps until any of them says something, or another thread wants something done.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unlocked.gossip.distributed.exchange import Memory
from unlocked.gossip.distributed.wire import GONE, introduced

LOG = logging.getLogger("unlocked.gossip")


@dataclass(eq=False)
class Link:
    """A connection to one peer."""

    peer: int
    sock: socket.socket
    theirs: Memory | None  # None: on another host


class Links:
    """What is done when a peer comes (`_join`), how long the thread sleeps at most (`_patience`), what it does whenever
    it has been awake (`_look_around`) and when it cannot go on (`stop`) is said by a subclass.
    """

    def __init__(self, like: Tensor, rank: int, peers: set[int], key: bytes, timeout: float) -> None:
        """`like`: a vector of the shape, type and device that will be exchanged."""
        self.rank, self.timeout, self.cpu = rank, timeout, 0.0
        self._like, self._peers, self._key = like, peers, key
        self._memory, *self._where = Memory.made(like, len(peers) + 1)
        self._poll, self._tasks = select.poll(), dict[int, Callable[[], None]]()
        self._calls: deque[Callable[[], None]] = deque()  # of other threads, for this one
        self._bell, self._ringer = socket.socketpair()
        self._ended, self._listener = False, list[socket.socket]()
        self._thread = threading.Thread(target=self._run, daemon=True, name="gossip")
        self.watch(self._bell, self._rung)

    def connect(self, address: str) -> int:
        """Begin to listen for neighbours at an address; returns the port."""
        listener = socket.create_server((address, 0), backlog=len(self._peers))
        listener.setblocking(False)  # who knocks may be gone when the door is opened
        self._listener.append(listener)
        self.watch(listener, lambda: self._accept(listener))
        self._thread.start()
        return int(listener.getsockname()[1])

    def meet(self, places: dict[int, tuple[str, int]]) -> None:
        """Connect to all neighbours of lower ranks in `places` (host and port by rank); the others come."""
        for peer in sorted(places.keys() & self._peers):
            if peer < self.rank:
                with contextlib.suppress(*GONE):
                    self._welcome(socket.create_connection(places[peer], timeout=self.timeout), server=False)

    def watch(self, sock: Any, task: Callable[[], None]) -> None:
        """Let the gossip's thread do something whenever there is something to read."""
        self._tasks[sock.fileno()] = task
        self._poll.register(sock, select.POLLIN)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            accepted, _ = listener.accept()
            threading.Thread(target=self._welcome, args=[accepted, True], daemon=True).start()

    def _welcome(self, sock: socket.socket, server: bool) -> None:
        """Tell each other who and where one is; strangers are turned away."""
        with contextlib.suppress(*GONE, ValueError):
            channel, (peer, where, mark) = introduced(sock, self._key, self.rank, *self._where, server=server)
            memory = Memory.opened(self._like, where, mark)
            channel.send("mapped", memory is not None)
            _, mapped = channel.receive()
            sock.settimeout(self.timeout)
            link = Link(peer, sock, memory if mapped else None)
            self.call(lambda: self._join(link))

    def call(self, task: Callable[[], None]) -> None:
        """Let the thread do something."""
        self._calls.append(task)
        with contextlib.suppress(*GONE):
            self._ringer.send(b"\0")

    def forget(self, sock: socket.socket) -> None:
        """Close a connection that was watched; only for the thread itself."""
        self._poll.unregister(sock)
        del self._tasks[sock.fileno()]
        sock.close()

    def leave(self) -> None:
        """Let the thread end."""
        self._ended = True
        self.call(lambda: None)
        if self._thread.ident is not None:
            self._thread.join(2 * self.timeout)
        if not self._thread.is_alive():  # else it ends with the process
            for end in (self._bell, self._ringer, *self._listener):
                end.close()
            self._memory.close()

    # The thread

    def _rung(self) -> None:
        self._bell.recv(4096)
        while self._calls:
            self._calls.popleft()()

    def _run(self) -> None:
        device = self._like.device
        stream = torch.cuda.stream(torch.cuda.Stream(device)) if device.type == "cuda" else contextlib.nullcontext()
        try:
            with stream:
                while not self._ended:
                    for descriptor, _ in self._poll.poll(self._patience()):
                        if task := self._tasks.get(descriptor):
                            task()
                    self._look_around()
                    self.cpu = time.thread_time()
        except Exception as error:
            self.stop(f"{type(error).__name__}: {error}")
            LOG.exception("rank %d trains on without gossip", self.rank)

    def _join(self, link: Link) -> None:
        raise NotImplementedError

    def _patience(self) -> float:
        raise NotImplementedError

    def _look_around(self) -> None:
        raise NotImplementedError

    def stop(self, reason: str) -> None:
        raise NotImplementedError
