"""Who computes and who talks, when: the events of a run, drawn before it starts.

A schedule depends on the seed, the graph, the rate and the number of gradients, never on the method: methods that are
compared see the same events. The gradient events do not even depend on the graph. Time is in gradient times.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import networkx as nx
import numpy as np

from unlocked import seeding
from unlocked.errors import SettingError
from unlocked.gossip import clock as clocks
from unlocked.gossip import topology
from unlocked.gossip.clock import Clock

GRADIENT, COMMUNICATION = 0, 1
EXPONENTIAL = Clock()


@dataclass(frozen=True)
class Schedule:
    """Events in order of time: `kind`, `time`, `i` and, for communications, the peer `j` (-1 for gradients)."""

    workers: int
    kind: np.ndarray  # (events,) uint8: GRADIENT or COMMUNICATION
    time: np.ndarray  # in gradient times
    i: np.ndarray
    j: np.ndarray

    def __len__(self) -> int:
        return len(self.kind)

    @property
    def gradients(self) -> int:
        return int((self.kind == GRADIENT).sum())

    def gradients_per_worker(self) -> np.ndarray:
        return np.bincount(self.i[self.kind == GRADIENT], minlength=self.workers)

    def communications_per_edge(self) -> dict[tuple[int, int], int]:
        """How often each pair (i < j) that communicated did so."""
        pairs = np.sort(np.stack([self.i, self.j], 1)[self.kind == COMMUNICATION], 1)
        return dict(sorted(Counter((i, j) for i, j in pairs.tolist()).items()))

    def only(self, chosen: np.ndarray) -> Schedule:
        """The events that a mask (events,) chooses."""
        return Schedule(self.workers, self.kind[chosen], self.time[chosen], self.i[chosen], self.j[chosen])

    def cut(self, gradients: list[int]) -> list[range]:
        """Ranges of events between consecutive numbers of gradients, e.g. the evaluation points of a run.

        Each range ends right after the gradient that completes its number; later communications belong to the next.
        """
        ends = [0, *(np.flatnonzero(self.kind == GRADIENT) + 1).tolist()]
        bounds = [ends[count] for count in gradients]
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

    Gradients follow the law of `clock`. Ends with the last of the `gradients` gradients (over all workers). `message`
    must be 0.
    """
    if message:
        raise SettingError("pairing", "poisson", "averages in no time; for latency or bandwidth use availability")
    gradient_time, computes = clocks.gradient_events(clock, len(graph), gradients, seed)
    edges = topology.edge_rates(graph, rate)
    lambdas = np.array(list(edges.values()))
    draws = seeding.generator(seed, "communication events")
    count = draws.poisson(lambdas.sum() * gradient_time[-1])
    talk_time = np.sort(draws.uniform(0, gradient_time[-1], count))
    pairs = np.array(list(edges))[draws.choice(len(edges), size=count, p=lambdas / lambdas.sum())]
    return merge(len(graph), gradient_time, computes, talk_time, pairs)


class Matchmaker:
    """Pairs workers, first come, first served, with neighbours that wait for a partner."""

    def __init__(self, graph: nx.Graph, seed: int) -> None:
        # a neighbour that counts twice stands there twice
        self.neighbours = {i: [j for j, edge in graph.adj[i].items() for _ in range(edge["weight"])] for i in graph}
        self.heaviest = max(weight for *_, weight in graph.edges(data="weight"))
        self.waiting: set[int] = set()
        self.draws = seeding.generator(seed, "pairing")

    def partner_of(self, worker: int) -> int | None:
        """A waiting neighbour, drawn in proportion to the weights; without one the worker waits itself.

        Where edges have different weights, a neighbour is passed over with a probability that leaves it its weight's
        share: mostly one neighbour waits, and taking it always would make all edges alike.
        """
        known = self.neighbours[worker]
        partners = [j for j in known if j in self.waiting]
        if self.heaviest > 1:
            partners = [j for j in partners if self.draws.random() < known.count(j) / self.heaviest]
        if not partners:
            self.waiting.add(worker)
            return None
        partner = partners[int(self.draws.integers(len(partners)))]
        self.waiting -= {worker, partner}
        return partner


def availability(
    graph: nx.Graph, rate: float, gradients: int, seed: int, clock: Clock = EXPONENTIAL, message: float = 0.0
) -> Schedule:
    """What a machine does: a worker that owes communications is paired with the first available neighbour.

    Each gradient makes its worker owe Poisson(rate) communications; it is available while it owes some and does not
    talk. Gradients never wait, and a worker that finds no partner keeps what it owes. An averaging takes `message`
    gradient times and stands at its end. What happens at the same moment happens in random order. Ends with the last
    of the `gradients` gradients.
    """
    gradient_time, computes = clocks.gradient_events(clock, len(graph), gradients, seed)
    debts = [communications_owed(rate, seed, worker) for worker in range(len(graph))]
    owed, busy = [0] * len(graph), [False] * len(graph)
    matchmaker = Matchmaker(graph, seed)
    talks: list[tuple[float, int, int]] = []
    running: list[tuple[float, float, int, int]] = []
    ties = seeding.generator(seed, "ties")
    order = np.lexsort((ties.random(gradients), gradient_time))

    def look(time: float, *those: int) -> None:
        for worker in those:
            willing = owed[worker] and not busy[worker]
            if willing and (partner := matchmaker.partner_of(worker)) is not None:
                busy[worker] = busy[partner] = True
                heapq.heappush(running, (time + message, ties.random(), worker, partner))

    def finish(until: float) -> None:
        while running and running[0][0] <= until:
            time, _, *pair = heapq.heappop(running)
            talks.append((time, pair[0], pair[1]))
            for worker in pair:
                owed[worker] -= 1
                busy[worker] = False
            look(time, *pair)

    for time, worker in zip(gradient_time[order].tolist(), computes[order].tolist(), strict=True):
        finish(time)
        owed[worker] += next(debts[worker])
        look(time, worker)
    pairs = np.array([talk[1:] for talk in talks]).reshape(-1, 2)
    return merge(len(graph), gradient_time, computes, np.array([talk[0] for talk in talks]), np.sort(pairs, axis=1))


def barrier_idle(graph: nx.Graph, gradients: int, seed: int, clock: Clock = EXPONENTIAL) -> float:
    """Share of the workers' time that is lost to waiting if everyone averages once, with whoever is free, during every
    gradient, and begins the next one only then. The released code waits like this; `availability` never does.
    """
    matchmaker, met = Matchmaker(graph, seed), [False] * len(graph)
    lengths = [clocks.durations(clock, worker, seed) for worker in graph]
    ends: list[tuple[float, int]] = []
    since: dict[int, float] = {}  # when a gradient ended whose worker has still to average
    lost = time = 0.0

    def begin(worker: int) -> None:
        nonlocal lost
        met[worker] = False
        heapq.heappush(ends, (time + next(lengths[worker]), worker))
        if (partner := matchmaker.partner_of(worker)) is not None:
            met[worker] = met[partner] = True
            if partner in since:
                lost += time - since.pop(partner)
                begin(partner)

    for worker in graph:
        begin(worker)
    for _ in range(gradients):
        time, worker = heapq.heappop(ends)
        if met[worker]:
            begin(worker)
        else:
            since[worker] = time
    return lost / (time * len(graph))


def communications_owed(rate: float, seed: int, worker: int) -> Iterator[int]:
    """What a worker owes for each of its gradients: Poisson of mean `rate`."""
    draws = seeding.generator(seed, "communications owed", worker)
    while True:
        yield from draws.poisson(rate, clocks.BLOCK).tolist()


PAIRINGS: dict[str, Callable[..., Schedule]] = {"poisson": poisson, "availability": availability}


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
