"""Where workers come from: processes of our own, or those that torchrun or Slurm started, here and on other machines.

Beside the engine of processes. Started plainly, the coordinator spawns all workers on this machine and talks to them
through pipes; no port is opened for that. Started by torchrun or srun, rank 0 coordinates and spawns worker 0; every
other rank follows it (`follow`): it connects to the coordinator for one run after the other. Such connections are made
on the interface of the setting alone, and only after both ends have proved that they know a random key, which rank 0
leaves in torch.distributed's rendezvous.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import secrets
import signal
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from multiprocessing.process import BaseProcess

import torch.distributed as dist

from unlocked.errors import MachineError, SettingError
from unlocked.gossip.processes import worker as workers
from unlocked.gossip.processes.messages import GONE, Channel, Dismissed
from unlocked.gossip.processes.pairs import interface_name
from unlocked.gossip.processes.places import Place

SLOW_IMPORTS = ("torch._inductor.config",)  # of torch.use_deterministic_algorithms
KEEP_ALIVE = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}  # seconds, seconds, unanswered probes
START_SECONDS = 300.0  # until every worker must have come: imports from a network file system take their time
ADDRESS_OF_INTERFACE = 0x8915  # SIOCGIFADDR of Linux


def interface_address(interface: str) -> str:
    """The IPv4 address of a network interface; `SettingError` if there is none."""
    if interface == "lo":
        return "127.0.0.1"
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            packed = struct.pack("256s", interface_name(interface)[:15].encode())
            return socket.inet_ntoa(fcntl.ioctl(any_socket.fileno(), ADDRESS_OF_INTERFACE, packed)[20:24])
    except OSError:
        there = ", ".join(name for _, name in socket.if_nameindex())
        raise SettingError("runtime.interface", interface, f"has no IPv4 address here; there are {there}") from None


def ignore_stops() -> None:
    """Leave SIGTERM and SIGINT, which reach all processes of a job, to the coordinator: it checkpoints its workers."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


# Processes of our own


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


# Processes that torchrun or Slurm started


def rendezvous() -> dist.Store:
    """The key-value store at MASTER_ADDR and MASTER_PORT that all ranks share."""
    store, _, _ = next(dist.rendezvous("env://", timeout=timedelta(seconds=START_SECONDS)))
    return store


class Lobby:
    """Where the other ranks wait for a run: rank 0's side, one for the life of its process."""

    def __init__(self, where: Place, interface: str) -> None:
        self.size, self._key = where.size, secrets.token_bytes(32)
        self._listener = socket.create_server((interface_address(interface), 0), backlog=where.size)
        self._store = rendezvous()  # kept: the store may live in this process
        host, port = self._listener.getsockname()
        self._store.set("unlocked/coordinator", f"{host} {port} {self._key.hex()}")

    def arrivals(self, seconds: float = START_SECONDS) -> Iterator[tuple[int, Connection]]:
        """(rank, line) of every other rank, as they come; ends when all are there or the time is over."""
        missing, deadline = self.size - 1, time.monotonic() + seconds
        while missing and (left := deadline - time.monotonic()) > 0:
            self._listener.settimeout(left)
            try:
                accepted, _ = self._listener.accept()
                line = proven(accepted, self._key, server=True)
                rank = int.from_bytes(line.recv_bytes(8), "big")
            except (OSError, EOFError, multiprocessing.AuthenticationError):
                continue
            missing -= 1
            yield rank, line

    def close(self) -> None:
        """Send the other ranks home."""
        for _, line in self.arrivals(10.0):
            channel = Channel(line)
            with suppress(GONE):
                channel.send(Dismissed())
            channel.close()
        self._listener.close()


def proven(sock: socket.socket, key: bytes, server: bool) -> Connection:
    """A connection whose other end has proved that it knows the key."""
    sock.settimeout(None)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a machine that is gone says no goodbye
    for option, value in KEEP_ALIVE.items():
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    line = Connection(sock.detach())
    steps = (deliver_challenge, answer_challenge) if server else (answer_challenge, deliver_challenge)
    for step in steps:
        step(line, key)
    return line


def connect(host: str, port: int, key: bytes, rank: int) -> Channel:
    """A line from this rank to the coordinator."""
    line = proven(socket.create_connection((host, port), timeout=START_SECONDS), key, server=False)
    line.send_bytes(rank.to_bytes(8, "big"))
    return Channel(line)


def follow(where: Place) -> None:
    """What every rank but 0 does: take part in the coordinator's runs until there is none any more."""
    ignore_stops()
    host, port, key = rendezvous().get("unlocked/coordinator").decode().split()
    try:
        while workers.follow(connect(host, int(port), bytes.fromhex(key), where.rank)):
            pass
    except GONE as error:
        raise MachineError(
            f"rank {where.rank} lost the coordinator at {host} ({error or 'it has ended'}); across machines, "
            "runtime.interface must name the network interface that connects them"
        ) from None


_lobby: Lobby | None = None


def lobby() -> Lobby | None:
    """The lobby of this process, None where it was started alone."""
    return _lobby


@contextmanager
def together(where: Place, interface: str) -> Iterator[None]:
    """Rank 0's runs take place in here."""
    global _lobby
    _lobby = Lobby(where, interface)
    try:
        yield
    finally:
        _lobby.close()
        _lobby = None
