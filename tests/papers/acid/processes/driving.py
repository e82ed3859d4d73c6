"""Drives trainings by processes as the training loop does, and checks their accounts."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from unlocked.gossip import topology
from unlocked.gossip.schedule import communications_owed
from unlocked.papers.acid.processes.coordinator import FINAL, Coordinator
from unlocked.papers.acid.processes.state import State
from unlocked.papers.acid.processes.training import ProcessTraining
from unlocked.papers.acid.settings import ProcessRun
from unlocked.papers.base import Measurement

Short = Callable[..., ProcessRun]
Started = Callable[[ProcessRun], ProcessTraining]


def drive(training: ProcessTraining, at: int = 0, act: Callable[[], object] = list) -> list[Measurement]:
    """Train to the end, evaluating where the run says so; `act` when `at` gradients are done."""
    measured = [training.measure(0)]
    for span in range(training.spans):
        for count, _ in enumerate(training.advance(span, 0), training.bounds[span] + 1):
            if count == at:
                act()
        measured.append(training.measure(span + 1))
    training.close()
    return measured


def advance_to(training: ProcessTraining, count: int) -> Coordinator:
    """Train until so many gradients of the first span are done; the workers go on meanwhile."""
    for done, _ in enumerate(training.advance(0, 0), 1):
        if done == count:
            break
    assert training.coordinator is not None
    return training.coordinator


def finals(training: ProcessTraining) -> dict[int, State]:
    """The workers that lived when their gossip was over, as they were then."""
    assert training.coordinator is not None
    return training.coordinator.past.samples[FINAL].states


def pid_of(training: ProcessTraining, worker: int) -> int:
    """The process of a worker."""
    assert training.coordinator is not None
    process = training.coordinator.members[worker].process
    assert process is not None
    assert process.pid is not None
    return process.pid


def check_accounts(training: ProcessTraining) -> dict[str, Any]:
    """Gradients are exact, both sides of every pair know of the same averagings, no worker has begun more than it owes;
    returns the counts.
    """
    counts, tallies = training.counts(), training.tallies()
    assert counts["gradients"] == sum(counts["gradients_per_worker"]) == training.total
    assert counts["gradients_per_worker"] == [tally.steps for tally in tallies]
    assert counts["deaths"] == []
    if training.run.method == "allreduce":
        return counts
    assert counts["communications_one_sided"] == counts["communications_failed"] == 0
    assert sum(counts["staleness"]) == sum(counts["averagings_between_gradients"]) == counts["gradients"]
    graph = topology.build(training.run.graph, training.run.workers)
    steps = [0] * training.run.workers
    for i, j, count in counts["communications_per_edge"]:
        assert graph.has_edge(i, j)
        steps[i] += count
        steps[j] += count
    for worker, tally in enumerate(tallies):
        owed = itertools.islice(communications_owed(training.run.rate / 2, training.run.seed, worker), tally.steps)
        assert steps[worker] == tally.averagings
        assert sum(tally.asked) <= sum(owed)
    return counts
