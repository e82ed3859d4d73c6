"""Who averages with whom among workers that are really there, and what became of every gossip step.

Workers are paired first come, first served, as in the simulator's law `availability`. A gossip step has ended when both
of its workers have said whether they applied it, or are lost; a pair that could not exchange its vectors is not made
again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import networkx as nx

from unlocked.gossip import schedule


@dataclass
class Ended:
    """Numbers of gossip steps that have ended: by pair (lower, higher), applied by one side alone, and by none."""

    edges: dict[tuple[int, int], int] = field(default_factory=dict)
    one_sided: int = 0
    failed: int = 0


@dataclass
class Step:
    """A gossip step under way."""

    pair: tuple[int, int]
    applied: dict[int, bool] = field(default_factory=dict)  # by worker, once it has said so
    reason: str = ""  # why it was not


class Matchmaker(schedule.Matchmaker):
    """Pairs workers; time is now. A worker is available when it says so, in the middle of a gossip step, too.

    Not for several threads at once.
    """

    def __init__(self, graph: nx.Graph, seed: int, ended: Ended | None = None) -> None:
        """`ended`: to go on counting in."""
        super().__init__(graph, seed)
        self.ended = Ended() if ended is None else ended
        self.under_way: dict[int, Step] = {}
        self.lost: set[int] = set()
        self.number = 0

    def arrange(self, worker: int) -> tuple[int, int] | None:
        """(number of a new gossip step, peer) for a worker that wants one; None while it has to wait for somebody."""
        peer = self.partner_of(worker)
        if peer is None:
            return None
        self.number += 1
        self.under_way[self.number] = Step((worker, peer))
        return self.number, peer

    def confirm(self, number: int, worker: int, applied: bool, reason: str = "") -> Step | None:
        """One side has ended a gossip step. The step is returned if it is over and failed though both are there."""
        step = self.under_way[number]
        step.applied[worker] = applied
        step.reason = reason or step.reason
        if not applied:
            self.part(*step.pair)
        over = self._count(number)
        return step if over and not all(step.applied.values()) and self.lost.isdisjoint(step.pair) else None

    def part(self, one: int, other: int) -> None:
        """The two can not exchange anything any more."""
        for worker, gone in ((one, other), (other, one)):
            self.neighbours[worker] = [j for j in self.neighbours[worker] if j != gone]

    def drop(self, worker: int) -> None:
        """The worker is not there any more."""
        self.lost.add(worker)
        self.waiting.discard(worker)
        for other in list(self.neighbours):
            self.part(worker, other)
        for number in [n for n, step in self.under_way.items() if worker in step.pair]:
            self._count(number)

    def _count(self, number: int) -> bool:
        """Count a gossip step once all of its workers that are there have ended it; returns whether they have."""
        step = self.under_way[number]
        if any(worker not in self.lost and worker not in step.applied for worker in step.pair):
            return False
        del self.under_way[number]
        sides = sum(step.applied.values())
        if sides == 2:
            one, other = sorted(step.pair)
            self.ended.edges[one, other] = self.ended.edges.get((one, other), 0) + 1
        elif sides:
            self.ended.one_sided += 1
        else:
            self.ended.failed += 1
        return True
