"""Where workers come from: processes of our own, or those that torchrun or Slurm started, here and on other machines.

Started plainly, the coordinator spawns all workers on this machine and talks to them through pipes; no port is opened
for that. Started by torchrun or srun, rank 0 coordinates and spawns worker 0; every other rank follows it (`follow`):
it connects to the coordinator for one run after the other.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from unlocked.errors import MachineError
from unlocked.gossip.distributed import rendezvous
from unlocked.gossip.distributed.channel import GONE, Channel
from unlocked.gossip.distributed.rendezvous import START_SECONDS, Reception
from unlocked.papers.acid.processes import worker as workers
from unlocked.papers.acid.processes.coordinator import Line
from unlocked.papers.acid.processes.messages import Dismissed
from unlocked.papers.acid.settings import ProcessRuntime
from unlocked.places import Place
from unlocked.settings import inside

SLOW_IMPORTS = ("torch._inductor.config",)  # of torch.use_deterministic_algorithms

_reception: Reception | None = None  # of this process, where it is rank 0 of several


def start_local() -> tuple[Connection, BaseProcess]:
    """A worker process on this machine and the pipe to it. All are forked from one that has imported torch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([workers.__name__, *SLOW_IMPORTS])
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # workers share cores
    here, there = context.Pipe()
    process = context.Process(target=workers.main, args=(there,), daemon=True)
    process.start()
    there.close()
    return here, process


def lines(numbers: Iterable[int]) -> Iterator[Line]:
    """Lines to the workers of these numbers, which are started here or come from elsewhere; `MachineError` if not."""
    wanted = set(numbers)
    if _reception is None:
        for number in sorted(wanted):
            yield number, *start_local()
        return
    yield 0, *start_local()
    came = {0}
    for rank, connection in _reception.arrivals():
        came.add(rank)
        if rank in wanted:
            yield rank, connection, None
    if missing := sorted(wanted - came):
        raise MachineError(f"ranks {', '.join(map(str, missing))} did not come within {START_SECONDS} s")


def follow(where: Place) -> None:
    """What every rank but 0 does: take part in the coordinator's runs until there is none any more."""
    workers.ignore_stops()
    host, port, key = rendezvous.coordinator()
    try:
        while workers.take_part(rendezvous.connect(host, port, key, where.rank)):
            pass
    except GONE as error:
        raise MachineError(
            f"rank {where.rank} lost the coordinator at {host} ({error or 'it has ended'}); across machines, "
            "runtime.interface must name the network interface that connects them"
        ) from None


@contextlib.contextmanager
def together(where: Place, runtime: ProcessRuntime) -> Iterator[None]:
    """Rank 0's runs take place in here; afterwards the other ranks are sent home."""
    global _reception
    with inside("runtime"):
        _reception = Reception(where.size, runtime.interface)
    try:
        yield
    finally:
        for _, connection in _reception.arrivals(10.0):
            channel = Channel(connection)
            with contextlib.suppress(*GONE):
                channel.send(Dismissed())
            channel.close()
        _reception.close()
        _reception = None
