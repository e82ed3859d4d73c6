"""A worker of AR-SGD: DistributedDataParallel averages every gradient over all workers."""

from __future__ import annotations

import os
import time
import warnings
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from unlocked import optim
from unlocked.gossip.distributed.rendezvous import interface_name
from unlocked.gossip.workers import bind
from unlocked.papers.acid.processes.worker import Worker


class Synchronous(Worker):
    """One worker of a run with the method allreduce."""

    def connect(self, host: str) -> int:
        """One process group for all workers, and the network in it; its parameters are the vector x itself."""
        runtime, (store_host, port) = self.run.runtime, self.store
        wait = timedelta(seconds=runtime.timeout)
        os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = interface_name(runtime.interface)
        dist.init_process_group(
            runtime.backend,
            store=dist.TCPStore(store_host, port, is_master=False, wait_for_workers=False, timeout=wait),
            rank=self.number,
            world_size=self.run.workers,
            timeout=wait,
        )
        self.flat_gradient = torch.zeros_like(self.vectors.x)
        model = self.networks.network(0)
        bind(model, self.vectors.x, self.flat_gradient)
        with warnings.catch_warnings():  # torch 2.14 prefers a name that 2.11 does not have
            warnings.simplefilter("ignore", FutureWarning)
            self.network = DistributedDataParallel(model, broadcast_buffers=False)
        return 0

    def gradient(self, step: int) -> tuple[float, int, int]:
        """One synchronous step; a slow worker sleeps before the others' part in it begins."""
        images, labels = self.streams.batches(self.data, [self.number], [step])
        self.flat_gradient.zero_()
        loss = cross_entropy(self.network(images[0]), labels[0])
        value = float(loss.detach())
        if self.pause:
            time.sleep(self.pause)
        loss.backward()
        optim.clip_(self.flat_gradient, self.run.optim.clip)
        self.descend(self.flat_gradient, step)
        return value, 0, 0

    def wind_down(self) -> None:
        """Leave the group, so that this process can join another."""
        super().wind_down()
        dist.destroy_process_group()
