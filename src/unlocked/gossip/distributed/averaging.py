"""A worker's averagings with its neighbours, beside its gradients: whom it asks, when, and what becomes of it.

Every gradient makes Poisson(rate / 2) averagings due that this worker begins, each with a neighbour drawn by the edges'
weights; its neighbours begin as many with it in the mean. So every edge is used at the rate of the theory
(`topology.edge_rates`), whoever is fast or slow, and nobody looks for partners in a third place.

Whoever is asked answers at once, in a thread of its own for every neighbour. It averages its current x with what it was
sent and says what its x was; the worker that asked does the same when it hears that. Nothing that happens to either
meanwhile matters to the sums (`Vectors.average`). A worker that has asked and waits puts off those who ask it, so that
all averagings of a worker have an order and could have happened one after the other, each in a moment. So that no
circle of workers waits, one that waits for a lower rank is `BUSY` for lower ranks, which ask again a moment later.

Between two workers there are five words of one byte, each with the number of a pair of vectors: `ASK`, `DONE`, `BUSY`,
`NO` of one that takes no part at present (ask somebody at the next gradient), and, where vectors have to travel, `GO`
before the first is sent.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import networkx as nx
import torch
from torch import Tensor

from unlocked import seeding
from unlocked.errors import named
from unlocked.gossip.distributed.exchange import Memory, bytes_of
from unlocked.gossip.distributed.vectors import Vectors
from unlocked.gossip.distributed.wire import GONE, admit, exactly, introduced, read, start_thread
from unlocked.gossip.schedule import communications_owed

LOG = logging.getLogger("unlocked.gossip")
BACKLOG = 2.0  # gradients whose communications may still be under way
ASK, GO, DONE, BUSY, NO = b"a", b"g", b"d", b"b", b"n"
AGAIN_MILLISECONDS = 1  # after which who was told `BUSY` asks again


@dataclass(eq=False)
class Link:
    """A connection to one neighbour."""

    peer: int
    sock: socket.socket
    theirs: Memory | None  # None: on another host
    crossed: int | None = None  # the pair of an `ASK` that met this worker's own on the way
    busy: bool = False  # has just said so


@dataclass(frozen=True)
class Asked:
    """What this worker waits for."""

    link: Link
    pair: tuple[Tensor, Tensor]  # sent and come back
    begun: float


class Averaging:
    """The averagings of one worker, from `connect` to `close`. Public methods are the training thread's.

    The lower rank of two neighbours listens, the higher one comes; both prove that they know the key, and map each
    other's memory if they are on one host. `changed`, the vectors' lock, guards everything.
    """

    def __init__(
        self, vectors: Vectors, graph: nx.Graph, rank: int, *, rate: float, seed: int, key: bytes, timeout: float
    ) -> None:
        """`timeout`: seconds after which a peer that does not answer is given up."""
        self.vectors, self.rank, self.timeout, self.changed = vectors, rank, timeout, vectors.changed
        self.owed, self.frozen, self.down = 0, True, ""
        self.asked: Counter[int] = Counter()  # averagings that this worker began and ended, by peer
        self.answered: Counter[int] = Counter()  # that a peer began
        self.in_vain = 0  # begun, and given up because the peer was
        self.failed: dict[int, str] = {}
        self.seconds = 0.0  # between asking and having averaged
        self.useful_cpu = 0.0  # seconds in exchanges and updates, of the training's thread too
        self.overhead_cpu = 0.0  # of the gossip's threads: all the rest
        self.threads: list[threading.Thread] = []
        self.listener: socket.socket | None = None
        self._weights = {peer: edge["weight"] for peer, edge in graph.adj[rank].items()}
        self._key, (self._memory, *self._where) = key, Memory.made(vectors.x, len(self._weights) + 1)
        self._stream = torch.cuda.Stream(vectors.x.device) if vectors.x.is_cuda else None
        self._most_owed = BACKLOG * max(1.0, rate)
        self._debts = communications_owed(rate / 2, seed, rank)
        self._draws, self._partner = seeding.generator(seed, "partners", rank), -1
        self._pair = 0  # of the memory's pairs, the one in use: the next one after a peer that may still write
        self._travelling = [torch.empty_like(vectors.x, device="cpu") for _ in range(2)]
        self._links: dict[int, Link] = {}
        self._waiting: Asked | None = None
        self._put_off = 0  # neighbours who have asked and wait
        self._answering = self._ended = False  # answering a peer on another host takes a while

    # The start

    def connect(self, address: str) -> int:
        """Begin to listen for neighbours at an address; returns the port."""
        self.listener = socket.create_server((address, 0), backlog=len(self._weights))
        self.threads.append(start_thread(admit, self.listener, lambda sock: self._welcome(sock, server=True)))
        return int(self.listener.getsockname()[1])

    def meet(self, places: dict[int, tuple[str, int]]) -> None:
        """Connect to all neighbours of lower ranks in `places` (host and port by rank); the others come."""
        for peer in sorted(places.keys() & self._weights.keys()):
            if peer < self.rank:
                with contextlib.suppress(*GONE):
                    self._welcome(socket.create_connection(places[peer], timeout=self.timeout), server=False)

    def missing(self, peers: set[int], seconds: float) -> list[int]:
        """The neighbours among `peers` that are still not there when the time is over; none when the gossip ends."""
        wanted = peers & self._weights.keys()
        with self.changed:
            self.changed.wait_for(lambda: self._ended or wanted <= self._links.keys(), seconds)
            return [] if self._ended else sorted(wanted - self._links.keys())

    def _welcome(self, sock: socket.socket, server: bool) -> None:
        """Tell each other who and where one is, then stay in touch; strangers are turned away."""
        try:
            channel, (peer, where, mark) = introduced(sock, self._key, self.rank, *self._where, server=server)
            memory = Memory.opened(self.vectors.x, where, mark)
            channel.send("mapped", memory is not None)
            _, mapped = channel.receive()
        except (*GONE, ValueError):
            sock.close()
            return
        sock.settimeout(self.timeout)
        with self.changed:
            if self._ended or peer in self._links or peer not in self._weights:
                sock.close()
                return
            self._links[peer] = link = Link(peer, sock, memory if mapped else None)
            self.threads.append(start_thread(self._serve, link))
            self._next()
            self.changed.notify_all()

    # The training's thread

    def skip(self, gradients: int) -> None:
        """Go on after so many gradients."""
        for _ in range(gradients):
            next(self._debts)

    def after_step(self, step: Callable[[], Any]) -> Any:
        """`step` moves the vectors; what it makes due is begun. Returns what `step` does."""
        with self.vectors.locked():
            result = step()
            begun = time.thread_time()
            self.owed += next(self._debts)
            self._next(fresh=True)
            self.useful_cpu += time.thread_time() - begun
        return result

    def must_wait(self) -> bool:
        """Whether too much is owed and some of it is under way; `changed` is notified when that may have changed."""
        return self.owed > self._most_owed and self._waiting is not None

    def hold(self) -> bool:
        """Take no part from now on, once what was asked has been answered; False if it was not in time."""
        with self.changed:
            self.frozen = True
            return self.changed.wait_for(lambda: not self._waiting and not self._answering, 2 * self.timeout)

    def resume(self) -> None:
        """Take part from now on; the inverse of `hold`."""
        with self.changed:
            self.frozen = False
            self._next()

    def close(self) -> None:
        """End, after what is under way; the others see that this worker is gone."""
        self.hold()
        self.stop("closed")
        with self.changed:
            ends = [self.listener, *(link.sock for link in self._links.values())]
        for sock in filter(None, ends):
            with contextlib.suppress(OSError):  # it has ended already
                sock.shutdown(socket.SHUT_RDWR)
        if self.listener is not None:
            self.listener.close()
        for thread in self.threads:
            thread.join(2 * self.timeout)
        self._memory.close()

    # Any thread

    def stop(self, reason: str) -> None:
        """There is no gossip any more, and this is why."""
        with self.changed:
            self.down, self._ended, self._waiting = self.down or reason, True, None
            self.changed.notify_all()

    def _next(self, fresh: bool = False) -> None:
        """Ask the next partner, if there is one and nobody else comes first. Under the lock.

        `fresh`: the vectors are as of now.
        """
        busy = self._waiting is not None or self._answering or self._put_off
        if busy or self.owed <= 0 or self.frozen or self._ended or not self._links:
            return
        if self._partner not in self._links:
            choices = [peer for peer in sorted(self._links) for _ in range(self._weights[peer])]
            self._partner = choices[int(self._draws.integers(len(choices)))]
        link = self._links[self._partner]
        self._waiting = Asked(link, self._memory.pair(self._pair), time.monotonic())
        if self._stream is not None:  # copied beside the gradients
            start_thread(self._ask, link)
        else:
            self._ask(link, fresh)

    def _ask(self, link: Link, fresh: bool = False) -> None:
        with self._beside(), self.changed:
            if waiting := self._asked_of(link):  # still
                if link.theirs is not None:
                    self.vectors.offer(waiting.pair[0], fresh)
                self._say(link, ASK, self._pair)

    def _beside(self) -> contextlib.AbstractContextManager[Any]:
        """On a GPU: the gossip's own stream."""
        return torch.cuda.stream(self._stream) if self._stream is not None else contextlib.nullcontext()

    def _asked_of(self, link: Link) -> Asked | None:
        """What this worker waits for, if it is this neighbour's answer."""
        return self._waiting if self._waiting is not None and self._waiting.link is link else None

    def _say(self, link: Link, word: bytes, pair: int) -> None:
        with contextlib.suppress(*GONE):  # whoever reads notices
            link.sock.sendall(word + pair.to_bytes(4, "little"))

    # The thread of a neighbour

    def _serve(self, link: Link) -> None:
        """Hear a neighbour until its connection or the gossip ends."""
        reason, poll = "", select.poll()
        poll.register(link.sock, select.POLLIN)
        try:
            with self._beside():
                while not self._ended:
                    self._hear(link, poll)
        except GONE as error:
            reason = str(error) if isinstance(error, TimeoutError) else ""
        except KeyError:
            reason = "it says what is no word"
        except Exception as error:
            self.stop(named(error))
            LOG.exception("rank %d trains on without gossip", self.rank)
        self._part(link, reason)

    def _part(self, link: Link, reason: str) -> None:
        """Go on without a neighbour; `reason`: why, if it is not gone."""
        with self.changed:
            del self._links[link.peer]
            link.sock.close()
            if reason:
                self.failed[link.peer] = reason
                LOG.warning("workers %d and %d average no more: %s", self.rank, link.peer, reason)
            if self._asked_of(link):
                self._waiting = None
                self.in_vain += 1
                self._pair += 1
            self._next()
            self.changed.notify_all()

    def _hear(self, link: Link, poll: select.poll) -> None:
        """Wait for a word, a while at most, and do what it says; `TimeoutError` if an answer is overdue."""
        begun = time.thread_time()
        said = poll.poll(AGAIN_MILLISECONDS if link.busy else 250 * self.timeout)  # a quarter of it
        woken = time.thread_time()
        if said:
            heard = read(link.sock, 5)
            word, pair = heard[:1], int.from_bytes(heard[1:], "little")
            {ASK: self._was_asked, GO: self._go, DONE: self._done, BUSY: self._busy, NO: self._no}[word](link, pair)
        if link.crossed is not None and self._asked_of(link) is None:
            pair, link.crossed = link.crossed, None
            self._was_asked(link, pair)
        with self.changed:
            self.overhead_cpu += woken - begun
            self.useful_cpu += time.thread_time() - woken
            if (waiting := self._asked_of(link)) and time.monotonic() > waiting.begun + self.timeout:
                raise TimeoutError(f"no answer within {self.timeout:g} s")
            if link.busy and not said:
                link.busy = False
                self._next()

    def _was_asked(self, link: Link, pair: int) -> None:
        """Answer at once, or when what is under way has ended."""
        with self.changed:
            if self._waiting is not None and max(self._waiting.link.peer, link.peer) < self.rank:
                self._say(link, BUSY, pair)
                return
            if self._asked_of(link):  # both have asked; the other one, of the higher rank, will be busy
                link.crossed = pair
                return
            self._put_off += 1
            idle = self.changed.wait_for(lambda: not self._waiting and not self._answering, self.timeout / 4)
            self._put_off -= 1
            if far := idle and not self.frozen and link.theirs is None:
                self._answering = True
            else:
                self._answer(link, pair, idle)
        if far:
            self._answer_far(link, pair)

    def _answer(self, link: Link, pair: int, idle: bool) -> None:
        """One side of an averaging, or why there is none. Under the lock."""
        if idle and not self.frozen and link.theirs is not None:
            self.vectors.answer(*link.theirs.pair(pair))
            self._say(link, DONE, pair)
            self.answered[link.peer] += 1
        else:
            self._say(link, NO if self.frozen else BUSY, pair)
        self._next()
        self.changed.notify_all()

    def _answer_far(self, link: Link, pair: int) -> None:
        """The same where vectors have to travel; the lock is free meanwhile."""
        received, sent = self._travelling
        try:
            self._say(link, GO, pair)
            exactly(link.sock, bytes_of(received))
            with self.changed:
                self.vectors.answer(received, sent)
                self.answered[link.peer] += 1
            link.sock.sendall(DONE + pair.to_bytes(4, "little"))
            link.sock.sendall(bytes_of(sent))
        finally:
            with self.changed:
                self._answering = False
                self._next()
                self.changed.notify_all()

    def _go(self, link: Link, _pair: int) -> None:
        if waiting := self._asked_of(link):
            self.vectors.offer(waiting.pair[0])
            link.sock.sendall(bytes_of(waiting.pair[0]))

    def _done(self, link: Link, _pair: int) -> None:
        """The other side of an averaging."""
        if (waiting := self._asked_of(link)) is None:
            return
        if link.theirs is None:
            exactly(link.sock, bytes_of(waiting.pair[1]))
        with self.changed:
            self.vectors.average(*waiting.pair)
            self.asked[link.peer] += 1
            self.owed -= 1
            self.seconds += time.monotonic() - waiting.begun
            self._waiting, self._partner = None, -1
            self._next()
            self.changed.notify_all()

    def _busy(self, link: Link, _pair: int) -> None:
        """Asked in vain: in a moment once more."""
        self._refused(link)
        link.busy = True

    def _no(self, link: Link, _pair: int) -> None:
        """Asked in vain: later somebody else. It may take long, so that debts beyond the backlog are void."""
        with self.changed:
            if self._refused(link):
                self._partner = -1
                self.owed = min(self.owed, int(self._most_owed))

    def _refused(self, link: Link) -> bool:
        """Wait no more for this neighbour's answer; whether this worker did."""
        with self.changed:
            if asked := self._asked_of(link) is not None:
                self._waiting = None
                self.changed.notify_all()
            return asked
