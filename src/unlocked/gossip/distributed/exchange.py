"""Exchanges of a vector between two workers, over torch.distributed.

Every pair that ever averages has a process group of its own, made when it first does: an exchange with a worker that
died or hangs ends with an error for that pair and disturbs no other, and no collective ever waits for a third worker.
Vectors on a GPU go through page-locked memory (gloo) or directly (nccl).
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"


def interface_name(interface: str) -> str:
    """The interface's name on this system: `lo` stands for loopback everywhere."""
    return LOOPBACK if interface == "lo" else interface


def choose_interface(interface: str) -> None:
    """Let torch.distributed use this network interface; it reads the setting whenever it makes a group."""
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = interface_name(interface)


def store(address: tuple[str, int], timeout: float) -> dist.Store:
    """The key-value store at (host, port), as a client."""
    host, port = address
    return dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=timeout))


class Peers:
    """The workers that one worker exchanges vectors with."""

    def __init__(
        self, store: dist.Store, worker: int, like: Tensor, *, backend: str, interface: str | None, timeout: float
    ) -> None:
        """`store`: shared by all workers. `like`: a vector of the shape, type and device that will be exchanged.

        `interface`: None leaves torch.distributed's setting as it is. `timeout`: seconds after which an exchange is
        given up.
        """
        if interface is not None:
            choose_interface(interface)
        self._store, self._worker, self._backend = store, worker, backend
        self._timeout = timedelta(seconds=timeout)
        self._groups: dict[int, dist.ProcessGroup] = {}
        staged = like.is_cuda and backend == "gloo"
        self._staging = [torch.empty_like(like, device="cpu", pin_memory=True) for _ in range(2)] if staged else None

    def connect(self, peer: int) -> None:
        """Connect to a peer now rather than at the first exchange; the peer has to do the same."""
        self._group(peer)

    def _group(self, peer: int) -> dist.ProcessGroup:
        """The group of this worker (the lower number has position 0) and a peer."""
        if peer not in self._groups:
            first, second = sorted((self._worker, peer))
            own = dist.PrefixStore(f"pair/{first}/{second}", self._store)
            self._groups[peer] = self._made(own, int(self._worker == second))
        return self._groups[peer]

    def _made(self, own: dist.Store, position: int) -> dist.ProcessGroup:
        if self._backend == "gloo":
            return dist.ProcessGroupGloo(own, position, 2, self._timeout)
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = self._timeout
        return dist.ProcessGroupNCCL(own, position, 2, options)

    def exchange(self, peer: int, sent: Tensor, received: Tensor) -> None:
        """Send one vector and receive the peer's into `received`; `RuntimeError` if the peer is not there any more.

        Blocks without using the processor. On a GPU `sent` may still be in the making on the current stream.
        """
        group, position = self._group(peer), int(self._worker > peer)
        out, into = (sent, received) if self._staging is None else self._staging
        if self._staging is not None:
            out.copy_(sent, non_blocking=True)
            finish_stream(sent.device)
        sending, receiving = (group.send, [out]), (group.recv, [into])
        # in opposite orders, because with nccl the first of the two may hold up the second
        order = (sending, receiving) if position == 0 else (receiving, sending)
        for work in [call(tensors, 1 - position, 0) for call, tensors in order]:
            work.wait()
        if self._staging is not None:
            received.copy_(into, non_blocking=True)
        elif received.is_cuda:
            finish_stream(received.device)


def finish_stream(device: torch.device) -> None:
    """Wait, asleep, for what is queued on the current stream."""
    event = torch.cuda.Event(blocking=True)
    event.record(torch.cuda.current_stream(device))
    event.synchronize()
