"""A worker's averagings with its neighbours, beside its gradients: whom it asks, when, and what becomes of it.

Every gradient makes Poisson(rate / 2) averagings due that this worker begins, each with a neighbour drawn by the edges'
weights; its neighbours begin as many with it in the mean. So every edge is used at the rate of the theory
(`topology.edge_rates`), whoever is fast or slow, and nobody looks for partners in a third place.

Whoever is asked answers at once, in a thread of its own. It averages its current x with what it was sent and says what
its x was; the worker that asked does the same when it hears that. Nothing that happens to either meanwhile matters to
the sums (`Vectors.average`). A worker that has asked and waits puts off those who ask it, so that all averagings of a
worker have an order and could have happened one after the other, each in a moment. So that no circle of workers waits,
one that waits for a lower rank is `BUSY` for lower ranks, which ask again a moment later.

Between two workers there are five words of one byte, each with the number of a pair of vectors: `ASK`, `DONE`, `BUSY`,
`NO` of one that takes no part at present (ask again after the next gradient), and, where vectors have to travel, `GO`
before the first is sent.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import networkx as nx
import torch
from torch import Tensor

from unlocked import seeding
from unlocked.gossip.distributed.exchange import bytes_of
from unlocked.gossip.distributed.links import LOG, Link, Links
from unlocked.gossip.distributed.vectors import Vectors
from unlocked.gossip.distributed.wire import GONE, exactly, read
from unlocked.gossip.schedule import communications_owed

BACKLOG = 2.0  # gradients whose communications may still be under way
ASK, GO, DONE, BUSY, NO = b"a", b"g", b"d", b"b", b"n"
AGAIN_SECONDS = 0.001  # after which who was told `BUSY` asks again


@dataclass(frozen=True)
class Asked:
    """What this worker waits for."""

    link: Link
    pair: tuple[Tensor, Tensor]  # sent and come back
    begun: float
    patient: float  # until when others are put off
    deadline: float  # when the peer is given up

    def late(self) -> bool:
        """Whether others are not put off any more."""
        return time.monotonic() > self.patient


class Averaging(Links):
    """The averagings of one worker, from `connect` to `close`. Public methods are the training thread's.

    `changed`, the vectors' lock, guards everything.
    """

    def __init__(
        self, vectors: Vectors, graph: nx.Graph, rank: int, *, rate: float, seed: int, key: bytes, timeout: float
    ) -> None:
        """`timeout`: seconds after which a peer that does not answer is given up."""
        self._weights = {peer: edge["weight"] for peer, edge in graph.adj[rank].items()}
        super().__init__(vectors.x, rank, set(self._weights), key, timeout)
        self.vectors, self.changed = vectors, vectors.changed
        self.owed, self.frozen, self.down = 0, True, ""
        self.asked: Counter[int] = Counter()  # averagings that this worker began and ended, by peer
        self.answered: Counter[int] = Counter()  # that a peer began
        self.in_vain = 0  # begun, and given up because the peer was
        self.failed: dict[int, str] = {}
        self.seconds = 0.0  # between asking and having averaged
        self.useful_cpu = 0.0  # seconds of the gossip's thread in exchanges and updates; `cpu` are all of it
        self.asking_cpu = 0.0  # seconds of the training's thread
        self._most_owed = BACKLOG * max(1.0, rate)
        self._debts = communications_owed(rate / 2, seed, rank)
        self._draws, self._partner = seeding.generator(seed, "partners", rank), -1
        self._choices: list[int] = []  # neighbours that are there: one that counts twice stands twice
        self._pair = 0  # of the memory's pairs, the one in use: the next one after a peer that may still write
        self._travelling = [torch.empty_like(vectors.x, device="cpu") for _ in range(2)]
        self._links: dict[int, Link] = {}
        self._waiting: Asked | None = None
        self._again = math.inf  # when to ask again
        self._answering = False  # a peer on another host, which takes a while
        self._put_off: deque[tuple[Link, int]] = deque()

    # The start

    def linked(self, peers: set[int]) -> bool:
        """Wait until all neighbours among `peers` are there, or the timeout is over."""
        wanted = peers & self._weights.keys()
        with self.changed:
            return self.changed.wait_for(lambda: wanted <= self._links.keys(), self.timeout)

    def _join(self, link: Link) -> None:
        with self.changed:
            if link.peer in self._links or link.peer not in self._weights:
                link.sock.close()
                return
            self._links[link.peer] = link
            self._choose()
            self.watch(link.sock, lambda: self._hear(link))
            self._next()
            self.changed.notify_all()

    def _choose(self) -> None:
        self._choices = [peer for peer in sorted(self._links) for _ in range(self._weights[peer])]

    # The training's thread

    def begin(self, skip: int = 0) -> None:
        """Take part from now on; `skip`: gradients that were done before."""
        for _ in range(skip):
            next(self._debts)
        self.resume()

    def after_step(self, step: Callable[[], Any]) -> Any:
        """`step` moves the vectors; what it makes due is begun. Returns what `step` does."""
        with self.vectors.locked():
            result = step()
            begun = time.thread_time()
            self.owed += next(self._debts)
            self._next(fresh=True)
            self.asking_cpu += time.thread_time() - begun
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
        """The inverse of `hold`."""
        with self.changed:
            self.frozen = False
            self._next()

    def close(self) -> None:
        """End, after what is under way; the others see that this worker is gone."""
        self.hold()
        self.leave()
        if not self._thread.is_alive():
            for link in self._links.values():
                link.sock.close()

    # Either thread, under the lock

    def _next(self, fresh: bool = False) -> None:
        """Answer those who were put off, then ask the next partner, if there is one and no exchange is under way.

        `fresh`: the vectors are as of now.
        """
        self._answer_all()
        if self.owed <= 0 or self._waiting or self._answering or self.frozen or self._ended or not self._links:
            return
        if self._partner not in self._links:
            self._partner = self._choices[int(self._draws.integers(len(self._choices)))]
        link = self._links[self._partner]
        now = time.monotonic()
        self._waiting = Asked(link, self._memory.pair(self._pair), now, now + self.timeout / 4, now + self.timeout)
        if self.vectors.x.is_cuda:  # copied beside the gradients, on the gossip's own stream
            self.call(lambda: self._ask(link))
        else:
            self._ask(link, fresh)

    def _ask(self, link: Link, fresh: bool = False) -> None:
        with self.changed:
            if self._waiting is not None and self._waiting.link is link:
                if link.theirs is not None:
                    self.vectors.offer(self._waiting.pair[0], fresh)
                self._say(link, ASK, self._pair)

    def _answer_all(self) -> None:
        while self._put_off and self._waiting is None and not self._answering:
            self._answer(*self._put_off.popleft())

    def _say(self, link: Link, word: bytes, pair: int) -> None:
        with contextlib.suppress(*GONE):  # whoever reads notices
            link.sock.sendall(word + pair.to_bytes(4, "little"))

    # The gossip's thread

    def stop(self, reason: str) -> None:
        """There is no gossip any more, and this is why."""
        with self.changed:
            self.down, self._ended, self._waiting = self.down or reason, True, None
            self.changed.notify_all()

    def _patience(self) -> float:
        """Milliseconds until something may be to do though nobody says anything; the training's thread asks, too."""
        until, waiting = self._again, self._waiting
        if waiting is not None and self._put_off:
            until = min(until, waiting.patient)
        return 1e3 * min(self.timeout / 4, max(0.0005, until - time.monotonic()))

    def _look_around(self) -> None:
        """Ask again who was busy; refuse those who have been put off for long; give up a peer that says nothing."""
        now = time.monotonic()
        if now >= self._again:
            self._again = math.inf
            with self.changed:
                self._next()
        with self.changed:
            if (waiting := self._waiting) is None:
                return
            while self._put_off and now > waiting.patient:
                link, pair = self._put_off.popleft()
                self._say(link, BUSY, pair)
            if now > waiting.deadline:
                self._part(waiting.link, f"no answer within {self.timeout:g} s")

    def _part(self, link: Link, reason: str = "") -> None:
        """Go on without a peer; `reason`: why, if it is not gone."""
        with self.changed:
            if self._links.get(link.peer) is not link:
                return
            del self._links[link.peer]
            self._choose()
            self.forget(link.sock)
            if reason:
                self.failed[link.peer] = reason
                LOG.warning("workers %d and %d average no more: %s", self.rank, link.peer, reason)
            self._put_off = deque((other, pair) for other, pair in self._put_off if other is not link)
            if self._waiting is not None and self._waiting.link is link:
                self._waiting = None
                self.in_vain += 1
                self._pair += 1
            self._next()
            self.changed.notify_all()

    @contextlib.contextmanager
    def _useful(self) -> Iterator[None]:
        begun = time.thread_time()
        yield
        self.useful_cpu += time.thread_time() - begun

    def _hear(self, link: Link) -> None:
        """What a peer says."""
        with self._from(link), self._useful():
            said = read(link.sock, 5)
            word, pair = said[:1], int.from_bytes(said[1:], "little")
            {ASK: self._was_asked, GO: self._go, DONE: self._done, BUSY: self._busy, NO: self._no}[word](link, pair)

    @contextlib.contextmanager
    def _from(self, link: Link) -> Iterator[None]:
        """Go on without a peer that is not there any more, or says what is no word."""
        try:
            yield
        except GONE as error:
            self._part(link, str(error) if isinstance(error, TimeoutError) else "")
        except KeyError:
            self._part(link, "it says what is no word")

    def _was_asked(self, link: Link, pair: int) -> None:
        with self.changed:
            waiting = self._waiting
            if self.frozen:
                self._say(link, NO, pair)
            elif waiting is not None and (max(waiting.link.peer, link.peer) < self.rank or waiting.late()):
                self._say(link, BUSY, pair)
            elif waiting is not None or self._answering:
                self._put_off.append((link, pair))
            else:
                self._answer(link, pair)
                self._next()

    def _answer(self, link: Link, pair: int) -> None:
        """One side of an averaging. Under the lock."""
        if link.theirs is None:
            self._answering = True
            self.call(lambda: self._answer_far(link, pair))
            return
        self.vectors.answer(*link.theirs.pair(pair))
        self._say(link, DONE, pair)
        self.answered[link.peer] += 1
        self.changed.notify_all()

    def _answer_far(self, link: Link, pair: int) -> None:
        """The same where vectors have to travel; the lock is free meanwhile."""
        received, sent = self._travelling
        with self._from(link), self._useful():
            self._say(link, GO, pair)
            exactly(link.sock, bytes_of(received))
            self.vectors.answer(received, sent)
            self.answered[link.peer] += 1
            link.sock.sendall(DONE + pair.to_bytes(4, "little"))
            link.sock.sendall(bytes_of(sent))
        with self.changed:
            self._answering = False
            self._next()
            self.changed.notify_all()

    def _go(self, link: Link, pair: int) -> None:
        if self._waiting is not None and self._waiting.link is link:
            self.vectors.offer(self._waiting.pair[0])
            link.sock.sendall(bytes_of(self._waiting.pair[0]))

    def _done(self, link: Link, pair: int) -> None:
        with self.changed:
            waiting = self._waiting
            if waiting is None or waiting.link is not link or pair != self._pair:
                return
            if link.theirs is None:
                exactly(link.sock, bytes_of(waiting.pair[1]))
            self.vectors.average(*waiting.pair)
            self.asked[link.peer] += 1
            self.owed -= 1
            self.seconds += time.monotonic() - waiting.begun
            self._waiting, self._partner = None, -1
            self._next()
            self.changed.notify_all()

    def _busy(self, link: Link, pair: int) -> None:
        self._no(link, pair)
        self._again = time.monotonic() + AGAIN_SECONDS

    def _no(self, link: Link, pair: int) -> None:
        """Asked in vain: later once more."""
        with self.changed:
            if self._waiting is not None and self._waiting.link is link and pair == self._pair:
                self._waiting = None
                self._answer_all()
                self.changed.notify_all()
