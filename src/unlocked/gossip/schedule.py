"""Who computes and who talks, when: the events of a run, drawn before it starts.

Between topology and the engines, and read by figures as traces; without torch. A schedule depends on the seed, the
graph, the rate and the number of gradients, never on the method: methods that are compared see the same events. The
gradient events do not even depend on the graph.

Time is in units of the mean duration of one gradient.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd

from unlocked import seeding
from unlocked.errors import SettingError, choose
from unlocked.gossip import clock as clocks
from unlocked.gossip import topology
from unlocked.gossip.clock import Clock
from unlocked.gossip.topology import check_rate

GRADIENT, COMMUNICATION = 0, 1
EXPONENTIAL = Clock()


@dataclass(frozen=True)
class Schedule:
    """Events in order of time: `kind`, `time`, `i` and, for communications, the peer `j` (-1 for gradients)."""

    workers: int
    kind: np.ndarray  # (events,) uint8: GRADIENT or COMMUNICATION
    time: np.ndarray  # (events,) float64, in gradient times
    i: np.ndarray  # (events,) int32
    j: np.ndarray  # (events,) int32

    def __len__(self) -> int:
        return len(self.kind)

    @property
    def gradients(self) -> int:
        """Gradients over all workers."""
        return int((self.kind == GRADIENT).sum())

    def gradients_per_worker(self) -> np.ndarray:
        """Shape (n,)."""
        return np.bincount(self.i[self.kind == GRADIENT], minlength=self.workers)

    def communications_per_edge(self) -> dict[tuple[int, int], int]:
        """How often each pair (i < j) that communicated did so."""
        talks = self.kind == COMMUNICATION
        pairs, counts = np.unique(np.sort(np.stack([self.i[talks], self.j[talks]], 1), 1), axis=0, return_counts=True)
        return {(int(i), int(j)): int(count) for (i, j), count in zip(pairs, counts, strict=True)}

    def only(self, chosen: np.ndarray) -> Schedule:
        """The events that a mask (events,) chooses."""
        return Schedule(self.workers, self.kind[chosen], self.time[chosen], self.i[chosen], self.j[chosen])

    def cut(self, gradients: list[int]) -> list[range]:
        """Ranges of events between consecutive numbers of gradients, e.g. the evaluation points of a run.

        Each range ends right after the gradient that completes its number; later communications belong to the next.
        """
        ends = np.flatnonzero(self.kind == GRADIENT)
        bounds = [0 if count == 0 else int(ends[count - 1]) + 1 for count in gradients]
        return [range(a, b) for a, b in zip([0, *bounds], bounds, strict=False)]


def merge(
    workers: int, gradient_time: np.ndarray, computes: np.ndarray, talk_time: np.ndarray, pairs: np.ndarray
) -> Schedule:
    """A schedule from gradients (times, workers) and communications (times, pairs (k, 2)), each in order of time.

    At the same moment gradients come first: the averaging that a gradient makes due averages its result. Nothing
    comes after the last gradient.
    """
    talks, gradients = len(talk_time), len(gradient_time)
    order = np.argsort(np.concatenate([gradient_time, talk_time]), kind="stable")
    order = order[: int(np.flatnonzero(order == gradients - 1)[0]) + 1]
    return Schedule(
        workers=workers,
        kind=np.repeat(np.array([GRADIENT, COMMUNICATION], np.uint8), [gradients, talks])[order],
        time=np.concatenate([gradient_time, talk_time])[order],
        i=np.concatenate([computes, pairs[:, 0]]).astype(np.int32)[order],
        j=np.concatenate([np.full(gradients, -1), pairs[:, 1]]).astype(np.int32)[order],
    )


def poisson(
    graph: nx.Graph, rate: float, gradients: int, seed: int, clock: Clock = EXPONENTIAL, message: float = 0.0
) -> Schedule:
    """The clocks of the theory: edge (i, j) ticks at rate lambda_ij, whatever else happens; averaging takes no time.

    Gradients follow the law of `clock` (rate-1 Poisson processes by default). Ticks of an edge with an absent worker
    are lost. Ends with the last of the `gradients` gradients (counted over all workers). `message` must be 0.
    """
    if message:
        raise SettingError("pairing", "poisson", "averages in no time; for latency or bandwidth use availability")
    workers = graph.number_of_nodes()
    gradient_time, computes = clocks.gradient_events(clock, workers, gradients, seed)
    edges = topology.edge_rates(graph, rate)
    lambdas = np.array(list(edges.values()))
    draws = seeding.generator(seed, "communication events")
    count = draws.poisson(lambdas.sum() * gradient_time[-1])
    talk_time = np.sort(draws.uniform(0, gradient_time[-1], count))
    pairs = np.array(list(edges))[draws.choice(len(edges), size=count, p=lambdas / lambdas.sum())]
    if clock.away_share:
        own = [clocks.Worker(clock, worker, seed) for worker in range(workers)]
        here = [all(own[w].back(t) == t for w in pair) for t, pair in zip(talk_time.tolist(), pairs, strict=True)]
        talk_time, pairs = talk_time[here], pairs[here]
    return merge(workers, gradient_time, computes, talk_time, pairs)


class Matchmaker:
    """Pairs available workers, first come first served: the state of the `availability` law.

    A worker owes communications for the gradients it has done. It is available while it owes some, is there, and does
    not talk. Who becomes available is paired with an available neighbour, drawn at random (on the complete graph at
    most one worker waits, so it is the first two that are paired). Nobody computes later because of this: gradients
    never wait, and a worker that finds no partner keeps what it owes.
    """

    def __init__(self, graph: nx.Graph, clock: Clock, seed: int, message: float) -> None:
        # a neighbour that counts twice is drawn twice as often
        self.neighbours = {i: [j for j, edge in graph.adj[i].items() for _ in range(edge["weight"])] for i in graph}
        self.owed = dict.fromkeys(graph, 0)
        self.waiting: set[int] = set()
        self.talking: set[int] = set()
        self.message = message
        self.draws = seeding.generator(seed, "pairing")
        self.own = [clocks.Worker(clock, worker, seed) for worker in range(len(graph))]

    def owe(self, worker: int, count: int) -> None:
        """A gradient has ended: the worker owes `count` more communications."""
        self.owed[worker] += count

    def offer(self, worker: int, time: float) -> tuple[float, int, int] | None:
        """Let a worker look for a partner: (end of the averaging, worker, partner) if it finds one."""
        if worker in self.talking or not self.owed[worker]:
            return None
        if self.own[worker].back(time) > time:
            return None
        partners = [j for j in self.neighbours[worker] if j in self.waiting and self.own[j].back(time) == time]
        if not partners:
            self.waiting.add(worker)
            return None
        partner = partners[int(self.draws.integers(len(partners)))]
        self.waiting -= {worker, partner}  # two neighbours may both wait, if one was away when the other looked
        self.talking |= {worker, partner}
        return time + self.message, worker, partner

    def done(self, *pair: int) -> None:
        """An averaging has ended."""
        for worker in pair:
            self.talking.discard(worker)
            self.owed[worker] -= 1


def availability(
    graph: nx.Graph,
    rate: float,
    gradients: int,
    seed: int,
    clock: Clock = EXPONENTIAL,
    message: float = 0.0,
    owed: str = "poisson",
) -> Schedule:
    """What a machine does: a worker that owes communications is paired with the first available neighbour.

    Each gradient makes its worker owe `rate` communications: `owed` is `poisson` (Poisson(rate)) or `deterministic`
    (the whole part of the running sum; any rate, below 1 too). An averaging takes `message` gradient times and stands
    at its end. Ends with the last of the `gradients` gradients.
    """
    check_rate(rate)
    choose("owed", owed, OWED)
    workers = graph.number_of_nodes()
    gradient_time, computes = clocks.gradient_events(clock, workers, gradients, seed)
    debts = [communications_owed(owed, rate, seed, worker) for worker in range(workers)]
    matchmaker = Matchmaker(graph, clock, seed, message)
    talks: list[tuple[float, int, int]] = []
    running: list[tuple[float, int, int]] = []

    def look(time: float, *those: int) -> None:
        for worker in those:
            if found := matchmaker.offer(worker, time):
                heapq.heappush(running, found)

    def finish(until: float) -> None:
        while running and running[0][0] <= until:
            talk = heapq.heappop(running)
            talks.append(talk)
            matchmaker.done(*talk[1:])
            look(talk[0], *talk[1:])

    for time, worker in zip(gradient_time.tolist(), computes.tolist(), strict=True):
        finish(time)
        matchmaker.owe(worker, next(debts[worker]))
        look(time, worker)
    finish(float(gradient_time[-1]))
    pairs = np.array([talk[1:] for talk in talks]).reshape(-1, 2)
    return merge(workers, gradient_time, computes, np.array([talk[0] for talk in talks]), np.sort(pairs, axis=1))


OWED = ("poisson", "deterministic")


def communications_owed(law: str, rate: float, seed: int, worker: int) -> Iterator[int]:
    """The endless numbers of communications that a worker owes for each of its gradients; their mean is `rate`."""
    draws, total = seeding.generator(seed, "communications owed", worker), 0.0
    while True:
        if law == "poisson":
            yield from draws.poisson(rate, clocks.BLOCK).tolist()
        else:
            before, total = total, total + rate
            yield int(total + 1e-9) - int(before + 1e-9)


PAIRINGS: dict[str, Callable[..., Schedule]] = {"poisson": poisson, "availability": availability}


def draw(pairing: str, graph: nx.Graph, rate: float, gradients: int, seed: int, **options: Any) -> Schedule:
    """The schedule of a run under a named law of pairing; `options` as that law takes them."""
    return PAIRINGS[choose("pairing", pairing, PAIRINGS)](graph, rate, gradients, seed, **options)


def levels(schedule: Schedule, events: range) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cut `events` into dependency levels: each is (indices of gradients, indices of communications).

    Events on disjoint workers commute, so an event can run as soon as the earlier events of its workers have: its
    level is one more than the highest of theirs. Within a level no worker appears twice.
    """
    busy = [0] * schedule.workers
    level = np.empty(len(events), np.int64)
    i, j = schedule.i[events.start : events.stop].tolist(), schedule.j[events.start : events.stop].tolist()
    for k, (a, b) in enumerate(zip(i, j, strict=True)):
        value = busy[a] if b < 0 else max(busy[a], busy[b])
        level[k] = value
        busy[a] = value + 1
        if b >= 0:
            busy[b] = value + 1
    order = np.argsort(level, kind="stable")
    starts = np.flatnonzero(np.diff(level[order], prepend=-1))
    for members in np.split(order, starts[1:]) if len(order) else []:
        members = members + events.start
        talks = schedule.kind[members] == COMMUNICATION
        yield members[~talks], members[talks]


def asynchronous_trace(schedule: Schedule, horizon: float) -> pd.DataFrame:
    """What each worker does until `horizon`: rows (worker, kind, start, end, peer).

    `gradient`: from a worker's one gradient event to its next; it computes all the time. `averaging`: a moment, with
    the other worker as `peer`.
    """
    rows: list[tuple[int, str, float, float, int]] = []
    begun = [0.0] * schedule.workers
    for kind, t, i, j in zip(schedule.kind, schedule.time, schedule.i, schedule.j, strict=True):
        if kind == GRADIENT and begun[i] < horizon:
            rows.append((int(i), "gradient", begun[i], min(t, horizon), -1))
            begun[i] = float(t)
        elif kind == COMMUNICATION and t < horizon:
            rows.append((int(i), "averaging", float(t), float(t), int(j)))
    return pd.DataFrame(rows, columns=["worker", "kind", "start", "end", "peer"])


def synchronous_trace(schedule: Schedule, horizon: float, averaging: float) -> pd.DataFrame:
    """The same gradient durations under all-reduce: all wait for the slowest, then average for `averaging` units.

    Rows as in `asynchronous_trace`, with kinds `gradient`, `idle` and `communication`.
    """
    gradients = schedule.kind == GRADIENT
    durations = [np.diff(schedule.time[gradients & (schedule.i == w)], prepend=0.0) for w in range(schedule.workers)]
    rows: list[tuple[int, str, float, float, int]] = []
    start = 0.0
    for step in zip(*durations, strict=False):
        if start >= horizon:
            break
        barrier = start + max(step)
        for worker, duration in enumerate(step):
            spans = (("gradient", start, start + duration), ("idle", start + duration, barrier),
                     ("communication", barrier, barrier + averaging))  # fmt: skip
            rows += [(worker, kind, a, min(b, horizon), -1) for kind, a, b in spans if a < min(b, horizon)]
        start = barrier + averaging
    return pd.DataFrame(rows, columns=["worker", "kind", "start", "end", "peer"])
