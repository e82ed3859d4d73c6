"""Where workers come from: processes of our own, or those that torchrun or Slurm started, here and on other machines.

Started plainly, the coordinator spawns all workers on this machine and talks to them through pairs of sockets without a
port; they know their run and its data. Started by torchrun or srun, rank 0 coordinates and spawns worker 0; every other
rank follows it (`follow`): it connects to the coordinator for one run after the other, by the user's key, and loads the
data itself.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import secrets
import signal
import socket
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.process import BaseProcess

import torch

from unlocked.errors import MachineError
from unlocked.gossip.distributed import rendezvous
from unlocked.gossip.distributed.rendezvous import START_SECONDS, Reception, farewell
from unlocked.gossip.distributed.wire import GONE, Channel, shared_key
from unlocked.papers.acid.processes.state import State
from unlocked.papers.acid.processes.synchronous import Synchronous
from unlocked.papers.acid.processes.worker import Worker
from unlocked.papers.acid.settings import Gossip, ProcessRun, ProcessRuntime
from unlocked.places import Place
from unlocked.settings import inside
from unlocked.vision.data import Dataset

Line = tuple[int, Channel, BaseProcess | None]  # to a worker; its process, None where somebody else started it
Find = Callable[[str], tuple[ProcessRun, Dataset]]  # a run and its data, by the run's id
_reception: Reception | None = None  # of this process, where it is rank 0 of several


def ignore_stops() -> None:
    """Leave SIGTERM and SIGINT, which reach all processes of a job, to the coordinator: it checkpoints its workers."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def take_part(channel: Channel, find: Find) -> bool:
    """Be a worker of one run, or wait for the end of one without this rank; False if there is none any more."""
    word, *values = channel.receive()
    if word in ("dismissed", "spared"):
        return word == "spared"
    name, key, store, start, number, past = values
    run, data = find(name)
    kind = Worker if isinstance(run, Gossip) else Synchronous
    worker = kind(
        channel, run, data, number, bytes.fromhex(key), store, torch.as_tensor(start), past and State.of(past)
    )
    worker.run_to_end()
    return True


def main(line: socket.socket, run: ProcessRun, data: Dataset) -> None:
    """The life of a worker process that the coordinator started: one run."""
    ignore_stops()
    take_part(Channel(line), lambda _: (run, data))


def start_local(run: ProcessRun, data: Dataset) -> tuple[Channel, BaseProcess]:
    """A worker process on this machine and a channel to it. All are forked from one that has imported torch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # workers share cores
    here, there = socket.socketpair()
    process = context.Process(target=main, args=(there, run, data), daemon=True)
    process.start()
    there.close()
    return Channel(here), process


def key() -> bytes:
    """What proves that a process belongs to a run: of this run alone where all workers are started here."""
    return secrets.token_bytes(32) if _reception is None else _reception.key


def lines(numbers: Iterable[int], run: ProcessRun, data: Dataset) -> Iterator[Line]:
    """Lines to the workers of these numbers, which are started here or come from elsewhere; `MachineError` if not."""
    wanted = set(numbers)
    for number in sorted(wanted if _reception is None else wanted & {0}):
        yield number, *start_local(run, data)
        wanted.remove(number)
    for rank, channel in _reception.arrivals(wanted) if _reception is not None else ():
        yield rank, channel, None
        wanted.remove(rank)
    if missing := sorted(wanted):
        raise MachineError(f"ranks {', '.join(map(str, missing))} did not come within {START_SECONDS} s")


def follow(where: Place, find: Find) -> None:
    """What every rank but 0 does: take part in the coordinator's runs until there is none any more."""
    ignore_stops()
    own = shared_key()
    host, port, channel = rendezvous.find(own, where.rank)
    try:
        while take_part(channel, find):
            channel = rendezvous.connect(host, port, own, where.rank)
    except GONE as error:
        raise rendezvous.lost(where.rank, host, error) from None


@contextlib.contextmanager
def together(where: Place, runtime: ProcessRuntime) -> Iterator[None]:
    """Rank 0's runs take place in here; afterwards the other ranks are sent home."""
    global _reception
    with inside("runtime"):
        _reception = Reception(where.size, runtime.interface)
    try:
        yield
    finally:
        # who has taken part in a run is back soon; who has not may still be starting
        for _, channel in _reception.arrivals(seconds=10.0 if _reception.met else START_SECONDS):
            farewell(channel, "dismissed", "")
        _reception.close()
        _reception = None
