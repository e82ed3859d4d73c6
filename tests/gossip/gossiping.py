"""Ranks that train with `AsyncGossip`, each in a process of its own: forked from a process that has imported torch."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import torch
import torch.distributed as dist
from torch import nn

from unlocked.errors import SettingError
from unlocked.gossip import AsyncGossip
from unlocked.gossip.distributed import async_gossip, averaging

os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["__main__", "unlocked.gossip.distributed.async_gossip", "scipy.linalg", "torch._dynamo"]
)
Task = Callable[..., Any]


def run(folder: Path, workers: int, task: Task, *arguments: Any, last: int = 0, seconds: float = 60) -> list[Any]:
    """`task(rank, *arguments)` on every rank: what each returned, the exit code of one that did not, or None after some
    seconds. Rank `last` has no more time than the others.
    """
    folder.mkdir(exist_ok=True)
    results: dict[int, Any] = {}
    ends, processes, deadline = {}, {}, time.monotonic() + seconds
    for rank in range(workers):
        ends[rank], theirs = CONTEXT.Pipe(duplex=False)
        place = (f"file://{folder}/rendezvous", rank, workers)
        processes[rank] = CONTEXT.Process(target=_rank, args=(theirs, place, task, arguments))
        processes[rank].start()
        theirs.close()
    for rank in sorted(ends, key=lambda rank: rank == last):
        if ends[rank].poll(0.1 if rank == last and last else max(0.1, deadline - time.monotonic())):
            with contextlib.suppress(EOFError):
                results[rank] = ends[rank].recv()
            processes[rank].join(5)
            results.setdefault(rank, processes[rank].exitcode)
    for process in processes.values():
        process.kill()
    return [results.get(rank) for rank in range(workers)]


def _rank(end: Connection, place: tuple[str, int, int], task: Task, arguments: tuple) -> None:
    method, rank, workers = place
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=method, rank=rank, world_size=workers)
    end.send(task(rank, *arguments))
    dist.destroy_process_group()


# tasks


def network(rank: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Different on all ranks; the second layer's weight has strides of its own."""
    torch.manual_seed(rank)
    model = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).to(dtype)
    model[3].weight.data = model[3].weight.data.t().contiguous().t()
    return model


def gradient(model: nn.Module, pause: float = 0.0) -> None:
    """Of random inputs; takes `pause` seconds more."""
    time.sleep(pause)
    dtype = model[0].weight.dtype
    model.zero_grad()
    model(torch.randn(16, 8, dtype=dtype)).square().mean().backward()


def values(model: nn.Module) -> list[float]:
    """All parameters and floating buffers."""
    return [v for t in (*model.parameters(), *model.buffers()) if t.is_floating_point() for v in t.flatten().tolist()]


def begin(rank: int, optimizer: str = "SGD", dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """A network and its gossip."""
    model = network(rank, dtype)
    chosen = getattr(torch.optim, optimizer)(model.parameters(), lr=0.01)
    return model, AsyncGossip(model, chosen, **{"timeout": 10.0, **options})


def train(
    rank: int,
    steps: tuple[int, int] = (40, 5),
    hit: tuple[int, int, float] | None = None,
    pause: float = 0.002,
    **options: Any,
) -> dict[str, Any]:
    """`steps[0] + steps[1] * rank` gradients, then the mean. `hit`: a rank, a signal to it, and seconds until then."""
    model, gossip = begin(rank, **options)
    with gossip:
        start = values(model)
        if hit is not None and rank == hit[0]:
            threading.Timer(hit[2], os.kill, [os.getpid(), hit[1]]).start()
        for _ in range(steps[0] + steps[1] * rank):
            gradient(model, pause)
            gossip.step()
        gossip._averaging.hold()
        gossip._vectors.start_gradient()
        gossip._vectors.unit = float("inf")  # time stands still
        before = values(model)
        workers = gossip.average_(3 * gossip.timeout)
        result = {"start": start, "before": before, "workers": workers, "after": values(model)}
    return result | {"statistics": gossip.statistics(), "alive": alive(gossip)}


def alive(gossip: AsyncGossip) -> bool:
    """Whether one of its threads is."""
    return any(thread.is_alive() for thread in gossip._averaging.threads)


class Recorded(async_gossip.Worker):
    """Keeps its events, averagings where they could have happened in a moment: kind, time, and of a gradient the step
    that the optimiser made, negated. What was asked in vain is none.
    """

    def __init__(self, *arguments: Any) -> None:
        self.events: list[tuple[str, float, Any]] = []
        self.asked = (0, 0.0)  # place among the events, and time, of the last question
        super().__init__(*arguments)

    def step(self) -> None:
        super().step()
        self.events.append(("gradient", self.last, self.m.tolist()))

    def offer(self, *arguments: Any) -> None:
        super().offer(*arguments)
        self.asked = len(self.events), self.last

    def answer(self, *arguments: Any) -> None:
        super().answer(*arguments)
        self.events.append(("answers", self.last, None))

    def average(self, *arguments: Any) -> None:
        super().average(*arguments)
        place, time_of = self.asked
        self.events.insert(place, ("asks", time_of, None))


def record(rank: int, lockstep: bool, dtype: torch.dtype, steps: int = 40) -> dict[str, Any]:
    """Train and record all events.

    `lockstep`: with momentum, by a clock at which rank 1's gradients come at k, rank 0's at k + 0.1, and rank 0 asks at
    once; else without momentum and as it comes. An averaging that was refused has no part in it.
    """
    now = 0.0

    def clock() -> float:
        return now + (0.1 if rank == 0 or threading.current_thread() is not threading.main_thread() else 0.0)

    patches: list[Any] = [mock.patch.object(async_gossip, "Worker", Recorded)]
    if lockstep:
        patches += [mock.patch("time.perf_counter", clock)]
        debts = itertools.repeat(1 - rank)
        patches += [mock.patch.object(averaging, "communications_owed", return_value=debts)]
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        model, gossip = begin(0, dtype=dtype, momentum=lockstep, strength=4.0, rate=1.0 if lockstep else 4.0)
        stack.enter_context(gossip)
        start, events, own = gossip._vectors.x.tolist(), gossip._vectors.events, gossip._averaging
        torch.manual_seed(rank)
        for step in range(steps):
            now = float(step)
            if lockstep and rank == 0:
                dist.barrier()  # rank 1 has done its step
            gradient(model, 0.003)
            gossip.step()
            if lockstep:
                if rank == 1:
                    dist.barrier()
                gossip._wait(lambda due=step + 1: (own.asked + own.answered).total() == due)
        own.hold()
        state = gossip.state_dict()
    return {"start": start, "events": events, "x": state["x"].tolist(), "x_tilde": state["x_tilde"].tolist()}


def leave(rank: int, folder: str) -> dict[str, Any]:
    """Twice, with one model: rank 1 fails early the first time; the second time it trains on while others average."""
    model, first = begin(rank)
    done = Path(folder) / "done"
    services = [child.pid for child in psutil.Process().children()]
    with contextlib.suppress(ZeroDivisionError), first:
        for step in range(30):
            gradient(model, 0.002)
            first.step()
            if rank == 1 and step == 10:
                raise ZeroDivisionError
        first.average_()
    with AsyncGossip(model, torch.optim.SGD(model.parameters(), lr=0.01), timeout=10) as second:
        gradient(model)
        second.step()
        begun = time.monotonic()
        while rank == 1 and not done.exists() and time.monotonic() < begun + 20:
            gradient(model, 0.01)
            second.step()
        workers = second.average_(1.0)
        seconds = time.monotonic() - begun
        done.touch()
    result = {"lost": first.statistics()["lost"], "alive": alive(first), "services": services}
    return result | {"workers": workers, "took": seconds}


def lose_the_service(rank: int) -> dict[str, Any]:
    """Rank 0's only child is killed in the middle."""
    model, gossip = begin(rank)
    with gossip:
        for step in range(40):
            gradient(model, 0.002)
            gossip.step()
            if rank == 0 and step == 20:
                psutil.Process().children()[0].kill()
        gossip._wait(lambda: False, 5)
        return {"workers": gossip.average_(), "statistics": gossip.statistics()}


def save_and_load(rank: int) -> dict[str, Any]:
    """A state, the state after it was loaded elsewhere, and what comes due next in both."""
    model, gossip = begin(rank, "Adam", strength=4.0)
    with gossip:
        for _ in range(20):
            gradient(model, 0.003)
            gossip.step()
        gossip._averaging.hold()
        state = gossip.state_dict()
    other, second = begin(7)
    with second:
        second.load_state_dict(state)
        again = second.state_dict()
    for kept in (state, again):
        kept |= {"x": kept["x"].tolist(), "x_tilde": kept["x_tilde"].tolist()}
    due, due_again = ([next(one._averaging._debts) for _ in range(50)] for one in (gossip, second))
    weight = other[0].weight.flatten().tolist()
    return {"state": state, "again": again, "due": due, "due_again": due_again, "weight": weight}


def begin_late(rank: int) -> dict[str, Any]:
    """Rank 1 makes its first step when rank 0 has made twenty; then both go on, and move their models."""
    model, gossip = begin(rank, rate=4.0)
    with gossip:
        for _ in range(20 - 20 * rank):
            gradient(model, 0.002)
            gossip.step()
        dist.barrier()
        result = {"averagings": gossip.statistics()["averagings"]}
        dist.barrier()
        for _ in range(40):
            gradient(model, 0.002)
            gossip.step()
        dist.barrier()
        result["later"] = gossip.statistics()["averagings"]
        gradient(model.double())
        try:
            gossip.step()
        except SettingError as error:
            result["moved"] = str(error)
    return result


def disagree(rank: int) -> str:
    """Ranks that do not want the same."""
    try:
        begin(rank, rate=1.0 + rank)
    except SettingError as error:
        return str(error)
    return ""
