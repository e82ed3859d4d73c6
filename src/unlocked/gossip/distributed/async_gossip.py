"""A²CiD² in anybody's training loop: every rank of a process group trains its own model and gossips beside it.

A worker has three copies of the parameters. The model's own are what gradients are taken at; only `step` and `average_`
write to them, between gradients. `x` and the auxiliary variable x̃ are what threads of its own average with other
workers meanwhile; `step` moves both by the step that the optimiser made on the model's parameters, and then copies x
into the model. Whom to average with is drawn beside it (`averaging`); a service (`server`) takes means.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import secrets
import socket
import time
from collections.abc import Callable
from typing import Any

import networkx as nx
import torch
import torch.distributed as dist

# It keeps the default group that there is when it is first imported, which optimisers and DistributedDataParallel do,
# in arguments: `destroy_process_group` would then not end that group's threads, and one that frees the tensors of the
# last collective while the interpreter ends aborts the process. So import it before there is a group.
import torch.distributed.nn.functional
from torch import Tensor, nn

from unlocked.errors import SettingError
from unlocked.gossip import topology
from unlocked.gossip.distributed import rendezvous, server
from unlocked.gossip.distributed.averaging import LOG, Averaging
from unlocked.gossip.distributed.vectors import Vectors
from unlocked.gossip.distributed.wire import GONE, KEY, Stranger, shared_key, start_thread
from unlocked.gossip.momentum import Constants, descend_

INTERFACE = "GLOO_SOCKET_IFNAME"  # torch.distributed's variable
SECONDS_BETWEEN_REPORTS = 0.1  # on how long gradients take
LONGEST = 86400.0  # a timeout that is longer is a mistake


def trained(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """The parameters that gossip is about: those that need a gradient. `SettingError` on what it cannot handle."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for name, p in named.items():
        if p.layout != torch.strided or type(p.data) is not Tensor or not p.is_floating_point():
            raise SettingError("model", name, "must be a dense floating-point parameter, whole in every process")
    kinds = sorted({f"{p.dtype} on {p.device}" for p in named.values()})
    if len(kinds) != 1:
        raise SettingError(
            "model", ", ".join(kinds) or "nothing to train", "all trained parameters must have one type and one device"
        )
    if not {p for group in optimizer.param_groups for p in group["params"] if p.requires_grad} <= {*named.values()}:
        raise SettingError("optimizer", type(optimizer).__name__, "must optimise the model's parameters alone")
    return list(named.values())


def network(
    name: str, workers: int, rate: float, momentum: bool, strength: float, seed: int
) -> tuple[nx.Graph, Constants]:
    """The graph over all workers, a ring of two being a pair, and what follows from it."""
    if workers < 2:
        raise SettingError("workers", workers, "must be at least 2, each a process of its own")
    graph = topology.build("path" if (name, workers) == ("ring", 2) else name, workers, seed)
    topology.edge_rates(graph, rate)  # refuses rates
    return graph, Constants.accelerated(*topology.chi(graph, rate), strength) if momentum else Constants.baseline()


class Worker(Vectors):
    """Vectors whose `read` is the memory of a model's parameters, and whose `m` is minus the optimiser's last step."""

    def __init__(self, parameters: list[nn.Parameter], constants: Constants) -> None:
        super().__init__(torch.cat([p.detach().flatten() for p in parameters]), constants, "exact")
        offset = 0
        for p in parameters:
            strides = torch.empty_like(p, device="meta").stride()  # the parameter's own, unless it has gaps
            p.data = self.read.as_strided(p.shape, strides, offset).copy_(p.detach())
            offset += p.numel()
        self.become(self.read)

    def step(self) -> None:
        """The optimiser has moved `read`, which was `m`: x and x̃ move by the same, and the model gets the current x."""
        self.m.sub_(self.read)
        with self.locked():
            self._mix()
            descend_(self.x, self.x_tilde, self.m, self.constants)
            self.read.copy_(self.x)

    def become(self, value: Tensor) -> None:
        """All copies are `value`, as of now."""
        with self.locked():
            for own in (self.x, self.x_tilde, self.read):
                own.copy_(value)
            self.last = time.perf_counter()


class AsyncGossip:
    """Gossip beside a training loop; see docs/async_gossip.md. Every rank of the group makes one at the same time.

    `graph`: a name of `topology.GRAPHS`. `rate`: communications per worker and gradient, in the mean. `momentum`:
    False is plain gossip, without the auxiliary variable. `strength`: factor on chi1. `timeout`: seconds after which an
    exchange with a silent peer is given up, and `average_` no longer waits. `SettingError` before anything has begun.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        graph: str = "ring",
        rate: float = 1.0,
        momentum: bool = True,
        strength: float = 1.0,
        process_group: dist.ProcessGroup | None = None,
        seed: int = 0,
        timeout: float = 60.0,
    ) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise SettingError("process_group", process_group, "call torch.distributed.init_process_group first")
        if not 0 < timeout <= LONGEST:
            raise SettingError("timeout", timeout, f"must be a number of seconds above 0, {LONGEST:g} at most")
        self.rank, workers = dist.get_rank(process_group), dist.get_world_size(process_group)
        self._parameters = trained(model, optimizer)
        self._graph, constants = network(graph, workers, rate, momentum, strength, seed)
        self._group, self._settings, self.timeout = process_group, (graph, rate, momentum, strength, seed), timeout
        self._optimizer, self._buffers = optimizer, [b for b in model.buffers() if b.is_floating_point()]
        self._meet(model)
        self._vectors = Worker(self._parameters, constants)
        self._changed = self._vectors.changed  # guards what follows
        self._counts = {"steps": 0, "timed": 0, "seconds": 0.0}
        self._stepped: float | None = None  # when the optimiser last did; None: the next gradient is not timed
        self._reported = 0.0  # when the service last heard how long gradients take
        self._lost: dict[int, str] = {}
        self._waited = 0.0  # seconds
        self._closing = False
        self._mean: tuple[int, Any] | None = None
        self._shared = 0  # how often this worker has asked for a mean
        self._connect(rate, seed)

    # The start

    def _meet(self, model: nn.Module) -> None:
        """All ranks must have the same model and settings; everything becomes rank 0's."""
        layout = [(p.shape, p.stride(), p.dtype) for p in self._parameters]
        told = self._gathered(((self._settings, layout), socket.gethostname()))
        for rank, (theirs, host) in enumerate(told):
            if theirs != told[0][0]:
                raise SettingError("rank", rank, "has a model, graph, rate, momentum, strength or seed unlike rank 0's")
            if host != told[0][1] and INTERFACE not in os.environ:
                raise SettingError(INTERFACE, None, "must name a network interface, with processes on several machines")
        first = 0 if self._group is None else dist.get_global_rank(self._group, 0)
        for tensor in itertools.chain(model.parameters(), model.buffers()):
            data = tensor.detach().contiguous()
            dist.broadcast(data, first, group=self._group)
            tensor.detach().copy_(data)

    def _gathered(self, own: Any) -> list[Any]:
        """What every rank says."""
        told: list[Any] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(told, own, group=self._group)
        return told

    def _connect(self, rate: float, seed: int) -> None:
        """To the service and to the neighbours; nothing is connected later. Averagings begin with the first step."""
        here, key, port = rendezvous.interface_address(os.environ.get(INTERFACE, "lo")), b"", 0
        if self.rank == 0:
            key = secrets.token_bytes(32)
            port = server.start(len(self._graph), here, shared_key(key))
        (first, key, port), *_ = self._gathered((here, key, port))
        key = shared_key(key)
        try:
            self._channel = rendezvous.connect(first, port, key, self.rank)
        except Stranger:
            raise SettingError(KEY, "this rank's", "must be the same on all ranks: the service has another") from None
        except GONE as error:
            right = f"must name the network interface that connects all ranks: no way to {first}:{port} ({error})"
            raise SettingError(INTERFACE, os.environ.get(INTERFACE), right) from None
        self._averaging = Averaging(
            self._vectors, self._graph, self.rank, rate=rate, seed=seed, key=key, timeout=self.timeout
        )
        self._listener = start_thread(self._listen)
        places = dict(enumerate(self._gathered((here, self._averaging.connect(here)))))
        self._averaging.meet(places)
        if missing := self._averaging.missing({*places}, self.timeout):
            LOG.warning("rank %d starts without its neighbours %s: they did not come in time", self.rank, missing)
        dist.barrier(self._group)

    # The training's thread

    def step(self, make: Callable[[], Any] | None = None) -> Any:
        """The optimiser's step, on the model, x and x̃, and the communications that it makes due.

        `make`: what makes the step, if not `optimizer.step`, e.g. `lambda: scaler.step(optimizer)`; its result is
        returned. Waits only if much is owed and a partner is there.
        """
        self._check_place()
        self._vectors.m.copy_(self._vectors.read)
        result = (make or self._optimizer.step)()
        now = time.perf_counter()
        if self._stepped is not None:  # the first gradient, which often takes much longer, is not counted
            self._counts["timed"] += 1
            self._counts["seconds"] += now - self._stepped
            self._report(now)
        self._stepped = now
        if self._averaging.must_wait():
            self._wait(lambda: not self._averaging.must_wait())
        if self._averaging.frozen:
            self._averaging.resume()
        self._averaging.after_step(self._vectors.step)
        self._counts["steps"] += 1
        return result

    def _check_place(self) -> None:
        """`SettingError` if the optimiser would move other memory than gossip's: after `model.to(...)`, for example."""
        where = self._vectors.read.data_ptr()
        for p in self._parameters:
            if p.numel() and p.data_ptr() != where:
                right = "must stay where AsyncGossip put them: move or replace a model before, not afterwards"
                raise SettingError("model", "its parameters", right)
            where += p.numel() * p.element_size()

    def _report(self, now: float) -> None:
        """Tell the service, from time to time, how long gradients take; it answers with the mean over workers."""
        if math.isinf(self._vectors.unit):  # until the service knows more
            self._vectors.unit = self._counts["seconds"]
        if now - self._reported > SECONDS_BETWEEN_REPORTS:
            self._reported = now
            self._say("timed", self._counts["timed"], self._counts["seconds"])

    def _wait(self, condition: Callable[[], Any], seconds: float | None = None) -> bool:
        """Sleep until a condition holds, there is no gossip any more, or the time is over; returns whether it holds."""
        begun = time.perf_counter()
        with self._changed:
            self._changed.wait_for(lambda: condition() or self._averaging.down, seconds)
            self._waited += time.perf_counter() - begun
            return bool(condition())

    def average_(self, timeout: float | None = None) -> int:
        """Parameters, auxiliary variable and floating buffers become the mean over all workers that call this.

        Once this worker's own exchanges have ended, waits for those that are still there, `timeout` seconds at most
        (the constructor's), and returns how many took part: 1, with a warning, without the service. Until its next
        `step` nobody averages with this worker.
        """
        seconds, self._stepped = self.timeout if timeout is None else timeout, None
        with self._changed:  # from here on a mean that comes too late for the call before is of no use
            self._mean, self._shared = None, self._shared + 1
        held = self._averaging.hold() and not self._averaging.down
        self._vectors.start_gradient()  # the model has the current x
        tensors = [self._vectors.x, *self._buffers]
        if held:
            wide = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
            self._say("share", self._shared, torch.cat([t.to("cpu", wide).flatten() for t in tensors]).numpy(), seconds)
            self._wait(lambda: self._mean is not None, seconds + self.timeout)
        if self._mean is None:
            LOG.warning("rank %d keeps its own parameters: %s", self.rank, self._averaging.down or "no answer in time")
            return 1
        workers, mean = self._mean
        x, *buffers = torch.from_numpy(mean).split([t.numel() for t in tensors])
        self._vectors.become(x)
        for own, value in zip(self._buffers, buffers, strict=True):
            own.copy_(value.view_as(own))
        return workers

    def statistics(self) -> dict[str, Any]:
        """What has happened to this worker so far; docs/async_gossip.md says what is what."""
        with self._changed:
            peers = self._averaging.asked + self._averaging.answered
            return {
                "steps": self._counts["steps"],
                "owed": self._averaging.owed,
                "averagings": peers.total(),
                "peers": dict(sorted(peers.items())),
                "lost": {**self._lost},
                "failed": {**self._averaging.failed},
                "seconds_waited": self._waited,
                "gradient_seconds": self._vectors.unit,
                "gossip": self._averaging.down or "runs",
            }

    def state_dict(self) -> dict[str, Any]:
        """What this worker needs to go on, besides its model's and its optimiser's states."""
        with self._changed:
            x, x_tilde, _, age = self._vectors.copies()
            own = self._averaging
            counts = {**self._counts, "owed": own.owed}
            peers = {"asked": {**own.asked}, "answered": {**own.answered}}
            return {"x": x, "x_tilde": x_tilde, "age": age, "counts": counts, "peers": peers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there, on every rank from its own, before its first step. The model gets x."""
        vectors, counts, own = self._vectors, {**state["counts"]}, self._averaging
        own.hold()  # until the first step
        with self._changed:
            own.owed, self._counts = counts.pop("owed"), counts
            own.asked.update(state["peers"]["asked"])
            own.answered.update(state["peers"]["answered"])
            own.skip(counts["steps"])
        vectors.become(state["x"])
        vectors.restore(state["x"], state["x_tilde"], vectors.m)
        if counts["timed"]:
            vectors.begin(counts["seconds"] / counts["timed"], state["age"])

    def close(self) -> None:
        """End the gossip of this worker, after the exchange under way; the others go on."""
        if self._closing:
            return
        self._closing = True
        self._averaging.hold()
        self._say("leave")
        self._averaging.close()
        self._channel.hang_up()
        self._listener.join()
        self._channel.close()

    def __enter__(self) -> AsyncGossip:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Any thread

    def _say(self, *message: Any) -> None:
        """To the service; who listens to it notices if it is not there."""
        with contextlib.suppress(*GONE):
            self._channel.send(*message)

    # The thread that listens to the service

    def _listen(self) -> None:
        with contextlib.suppress(*GONE):
            while True:
                self._hear(*self._channel.receive())
        if not self._closing:
            self._averaging.stop("the pairing service is lost")
            LOG.warning("rank %d trains on without gossip: %s", self.rank, self._averaging.down)

    def _hear(self, word: str, *values: Any) -> None:
        """What the service says."""
        with self._changed:
            if word == "mean":
                if values[0] == self._shared:
                    self._mean = values[1], values[2]
            elif word == "unit":
                self._vectors.unit = values[0]
            else:
                self._lost[values[0]] = values[1]
            self._changed.notify_all()
