"""How processes that torchrun or Slurm started find rank 0, which coordinates them, for one run after the other.

Rank 0 leaves its address, and nothing else, in torch.distributed's rendezvous, which anybody on the network may read
and write. Connections are made on one network interface alone, and only after both ends have proved that they know the
user's key (`wire.shared_key`).
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
import sys
import time
from collections.abc import Collection, Iterator
from datetime import timedelta

import torch.distributed as dist

from unlocked.errors import MachineError, SettingError
from unlocked.gossip.distributed.wire import GONE, KEY, Channel, introduced, shared_key

LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
START_SECONDS = 300.0  # until every process must have come: imports from a network file system take their time
ADDRESS_OF_INTERFACE = 0xC0206921 if sys.platform == "darwin" else 0x8915  # SIOCGIFADDR
ADDRESS = "unlocked/coordinator"


def interface_name(interface: str) -> str:
    """The interface's name on this system: `lo` stands for loopback everywhere."""
    return LOOPBACK if interface == "lo" else interface


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
        raise SettingError("interface", interface, f"has no IPv4 address here; there are {there}") from None


def serve(address: str) -> tuple[dist.Store, int]:
    """A key-value store of this process at an address, and its port."""
    bound = socket.create_server((address, 0))
    port = bound.getsockname()[1]
    store = dist.TCPStore(address, port, is_master=True, wait_for_workers=False, master_listen_fd=bound.detach())
    return store, port


def rendezvous() -> dist.Store:
    """The key-value store at MASTER_ADDR and MASTER_PORT that all ranks share."""
    store, _, _ = next(dist.rendezvous("env://", timeout=timedelta(seconds=START_SECONDS)))
    return store


class Reception:
    """Where the other ranks come for every run: rank 0's side, one for the life of its process."""

    def __init__(self, size: int, interface: str) -> None:
        """`size`: number of ranks, rank 0 included."""
        self.size, self.key = size, shared_key()
        self._listener = socket.create_server((interface_address(interface), 0), backlog=size)
        self._spare: list[Channel] = []  # to ranks that the run under way does without
        self.met = False  # whether anybody has come yet
        self._store = rendezvous()  # kept: the store may live in this process
        host, port = self._listener.getsockname()
        self._store.set(ADDRESS, f"{host} {port}")

    def arrivals(
        self, wanted: Collection[int] | None = None, seconds: float = START_SECONDS
    ) -> Iterator[tuple[int, Channel]]:
        """(rank, channel) of every other rank, as they come; ends when all are there or the time is over.

        wanted: of these alone; a rank that comes and is not among them waits for the next call.
        """
        expected = {*range(self.size)} if wanted is None else {*wanted}
        while self._spare:
            farewell(self._spare.pop(), "spared")
        missing, deadline = self.size - 1, time.monotonic() + seconds
        while missing and (left := deadline - time.monotonic()) > 0:
            self._listener.settimeout(left)
            try:
                channel, (rank,) = introduced(self._listener.accept()[0], self.key, server=True)
            except (*GONE, ValueError):
                continue
            missing, self.met = missing - 1, True
            if rank in expected:
                expected.remove(rank)
                yield rank, channel
            else:
                self._spare.append(channel)

    def close(self) -> None:
        """Let nobody in any more."""
        self._listener.close()


def farewell(channel: Channel, *message: str) -> None:
    """A last word, if there is still somebody to hear it."""
    with contextlib.suppress(*GONE):
        channel.send(*message)
    channel.close()


def find(key: bytes, rank: int, seconds: float = START_SECONDS) -> tuple[str, int, Channel]:
    """Host and port of rank 0's reception, and a channel from this rank to it; `MachineError` if nobody answers there.

    torchrun may have restarted all ranks beside a store in which the address of the last rank 0 still stands.
    """
    store, deadline = rendezvous(), time.monotonic() + seconds
    while True:
        host, port = store.get(ADDRESS).decode().split()
        try:
            return host, int(port), connect(host, int(port), key, rank)
        except GONE as error:
            if not isinstance(error, ConnectionRefusedError):
                raise lost(rank, host, error) from None
            if time.monotonic() > deadline:
                raise MachineError(f"rank {rank} finds nobody at {host}:{port}, where rank 0 should be") from None
            time.sleep(0.1)


def lost(rank: int, host: str, error: BaseException) -> MachineError:
    """Why a rank has no connection to rank 0."""
    return MachineError(
        f"rank {rank} lost the coordinator at {host} ({error or 'it has ended'}); across machines, "
        f"runtime.interface must name the network interface that connects them, and all must have one {KEY} or home"
    )


def connect(host: str, port: int, key: bytes, rank: int) -> Channel:
    """A channel from this rank to rank 0."""
    sock = socket.create_connection((host, port), timeout=START_SECONDS)
    channel, _ = introduced(sock, key, rank, server=False, seconds=None)  # rank 0 may be in the middle of something
    return channel
