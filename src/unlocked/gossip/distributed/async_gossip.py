"""A²CiD² in anybody's training loop: every rank of a process group trains its own model and gossips beside it.

A worker has three copies of the parameters. The model's own are what gradients are taken at; only `step` and `average_`
write to them, between gradients. `x` and the auxiliary variable x̃ are what a thread of its own averages with other
workers meanwhile; `step` moves both by the step that the optimiser made on the model's parameters, and then copies x
into the model. The pairing service (`server`) finds partners.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import os
import re
import secrets
import socket
import threading
import time
from collections import Counter
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
from unlocked.gossip.distributed.channel import GONE
from unlocked.gossip.distributed.exchange import Peers
from unlocked.gossip.distributed.vectors import Vectors
from unlocked.gossip.momentum import Constants, descend_
from unlocked.gossip.schedule import communications_owed

BACKLOG = 2.0  # gradients whose communications may still be under way
INTERFACE = "GLOO_SOCKET_IFNAME"  # torch.distributed's variable
LOG = logging.getLogger("unlocked.gossip")
GLOO_EXTRAS = re.compile(r"^\[.*?\] |\. This is typically.*")  # where in its source, and guesses


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
        self.rank, workers = dist.get_rank(process_group), dist.get_world_size(process_group)
        self._parameters = trained(model, optimizer)
        self._graph, constants = network(graph, workers, rate, momentum, strength, seed)
        self._group, self._rate, self._seed, self.timeout = process_group, rate, seed, timeout
        self._optimizer, self._buffers = optimizer, [b for b in model.buffers() if b.is_floating_point()]
        self._meet(model, (graph, rate, momentum, strength, seed))
        self._vectors = Worker(self._parameters, constants)
        self._debts = communications_owed(rate, seed, self.rank)
        self._ended: float | None = None  # when the last gradient did; None: the next one is not timed
        self._changed = threading.Condition()  # guards what follows
        self._counts = {"steps": 0, "owed": 0, "timed": 0, "seconds": 0.0}
        self._peer_counts: Counter[int] = Counter()
        self._lost: dict[int, str] = {}
        self._failed: dict[int, str] = {}
        self._waited = 0.0  # seconds
        self._state = "idle"  # or asked, alone, match, held
        self._holding = self._closing = False
        self._mean: tuple[int, Any] | None = None
        self._down = ""  # why there is no gossip any more
        self._connect()
        self._thread = threading.Thread(target=self._listen, daemon=True, name="gossip")
        self._thread.start()

    # The start

    def _meet(self, model: nn.Module, settings: tuple) -> None:
        """All ranks must have the same model and settings; everything becomes rank 0's."""
        layout = [(p.shape, p.stride(), p.dtype) for p in self._parameters]
        told: list[Any] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(told, ((settings, layout), socket.gethostname()), group=self._group)
        for rank, (theirs, host) in enumerate(told):
            if theirs != told[0][0]:
                raise SettingError("rank", rank, "has a model, graph, rate, momentum, strength or seed unlike rank 0's")
            if host != told[0][1] and INTERFACE not in os.environ:
                raise SettingError(INTERFACE, None, "must name a network interface, with processes on several machines")
        self._first = 0 if self._group is None else dist.get_global_rank(self._group, 0)
        for tensor in itertools.chain(model.parameters(), model.buffers()):
            data = tensor.detach().contiguous()
            dist.broadcast(data, self._first, group=self._group)
            tensor.detach().copy_(data)

    def _connect(self) -> None:
        """To the service and, in one order of all edges, to the neighbours: nothing is connected later."""
        box: list[Any] = [None]
        if self.rank == 0:
            key, here = secrets.token_bytes(32), rendezvous.interface_address(os.environ.get(INTERFACE, "lo"))
            self._store, store_port = rendezvous.serve(here)
            box = [(here, server.start(self._graph, self._seed, here, key), key, store_port)]
        dist.broadcast_object_list(box, self._first, group=self._group)
        here, port, key, store_port = box[0]
        self._channel = rendezvous.connect(here, port, key, self.rank)
        store = dist.TCPStore(here, store_port, is_master=False, wait_for_workers=False)
        backend = "nccl" if dist.get_backend(self._group) == "nccl" else "gloo"
        x, seconds = self._vectors.x, self.timeout
        self._peers = Peers(store, self.rank, x, backend=backend, interface=None, timeout=seconds)
        for edge in sorted(sorted(edge) for edge in self._graph.edges):
            if self.rank in edge:
                self._peers.connect(sum(edge) - self.rank)
        dist.barrier(self._group)

    # The training's thread

    def step(self, make: Callable[[], Any] | None = None) -> Any:
        """The optimiser's step, on the model, x and x̃, and the communications that it makes due.

        `make`: what makes the step, if not `optimizer.step`, e.g. `lambda: scaler.step(optimizer)`; its result is
        returned. Waits only if much is owed and a partner is there.
        """
        self._vectors.m.copy_(self._vectors.read)
        result = (make or self._optimizer.step)()
        if self._ended is not None:  # the first gradient, which often takes much longer, is not counted
            self._counts["timed"] += 1
            self._counts["seconds"] += time.perf_counter() - self._ended
            if math.isinf(self._vectors.unit):  # until the service knows more
                self._vectors.unit = self._counts["seconds"]
        most = BACKLOG * max(1.0, self._rate)
        self._wait(lambda: self._counts["owed"] <= most or self._state not in ("asked", "match"))
        self._vectors.step()
        with self._changed:
            self._counts["steps"] += 1
            self._counts["owed"] += next(self._debts)
            if self._holding and not self._closing:
                self._holding, self._state = False, "idle"
            self._ask()
        self._ended = time.perf_counter()
        return result

    def _wait(self, condition: Callable[[], Any], seconds: float | None = None) -> bool:
        """Sleep until a condition holds, there is no gossip any more, or the time is over; returns whether it holds."""
        begun = time.perf_counter()
        with self._changed:
            self._changed.wait_for(lambda: condition() or self._down, seconds)
            self._waited += time.perf_counter() - begun
            return bool(condition())

    def average_(self, timeout: float | None = None) -> int:
        """Parameters, auxiliary variable and floating buffers become the mean over all workers that call this.

        Waits for those that are still there, `timeout` seconds at most (the constructor's), and returns how many took
        part: 1, with a warning, without the service. Until its next `step` nobody averages with this worker.
        """
        seconds, self._mean, self._ended = self.timeout if timeout is None else timeout, None, None
        held = self._hold()
        self._vectors.start_gradient()  # the model has the current x
        tensors = [self._vectors.x, *self._buffers]
        if held:
            wide = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
            self._say("share", torch.cat([t.to("cpu", wide).flatten() for t in tensors]).numpy(), seconds)
            self._wait(lambda: self._mean is not None, seconds + self.timeout)
        if self._mean is None:
            LOG.warning("rank %d keeps its own parameters: %s", self.rank, self._down or "no answer in time")
            return 1
        workers, mean = self._mean
        x, *buffers = torch.from_numpy(mean).split([t.numel() for t in tensors])
        self._vectors.become(x)
        for own, value in zip(self._buffers, buffers, strict=True):
            own.copy_(value.view_as(own))
        return workers

    def _hold(self) -> bool:
        """Take no part in gossip, once the exchange under way has ended; False if the service does not answer."""
        with self._changed:
            self._holding = True
        self._say("hold")
        return self._wait(lambda: self._state == "held", 2 * self.timeout)

    def statistics(self) -> dict[str, Any]:
        """What has happened to this worker so far; docs/async_gossip.md says what is what."""
        with self._changed:
            return {
                **{name: self._counts[name] for name in ("steps", "owed")},
                "averagings": self._peer_counts.total(),
                "peers": dict(sorted(self._peer_counts.items())),
                "lost": {**self._lost},
                "failed": {**self._failed},
                "seconds_waited": self._waited,
                "gradient_seconds": self._vectors.unit,
                "gossip": self._down or "runs",
            }

    def state_dict(self) -> dict[str, Any]:
        """What this worker needs to go on, besides its model's and its optimiser's states."""
        with self._changed:
            x, x_tilde, _, age = self._vectors.copies()
            return {"x": x, "x_tilde": x_tilde, "age": age, "counts": {**self._counts}, "peers": {**self._peer_counts}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there, on every rank from its own, before its first step. The model gets x."""
        vectors, counts = self._vectors, state["counts"]
        with self._changed:
            self._counts, self._peer_counts = {**counts}, Counter(state["peers"])
            self._debts = itertools.islice(
                communications_owed(self._rate, self._seed, self.rank), counts["steps"], None
            )
        vectors.become(state["x"])
        vectors.restore(state["x"], state["x_tilde"], vectors.m)
        if counts["timed"]:
            vectors.begin(counts["seconds"] / counts["timed"], state["age"])

    def close(self) -> None:
        """End the gossip of this worker, after the exchange under way; the others go on."""
        if self._closing:
            return
        self._closing = True
        self._hold()
        self._say("leave")
        self._channel.hang_up()
        self._thread.join(2 * self.timeout)
        if not self._thread.is_alive():  # else it is in an exchange, and ends with the process
            self._channel.close()
            del self._peers

    def __enter__(self) -> AsyncGossip:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Both threads

    def _ask(self) -> None:
        """Ask for a partner if there is need. Only under `_changed`."""
        if self._counts["owed"] > 0 and self._state == "idle" and not (self._holding or self._down):
            self._state = "asked"
            self._say("want", self._counts["timed"], self._counts["seconds"])

    def _say(self, *message: Any) -> None:
        """To the service; the gossip's thread notices if it is not there."""
        with contextlib.suppress(*GONE):
            self._channel.send(message)

    # The gossip's thread

    def _listen(self) -> None:
        """Do what the service says, until one of the two ends."""
        device = self._vectors.x.device
        stream = torch.cuda.stream(torch.cuda.Stream(device)) if device.type == "cuda" else contextlib.nullcontext()
        try:
            with stream:  # not run on a GPU yet
                while True:
                    self._hear(*self._channel.receive())
        except Exception as error:
            lost = isinstance(error, GONE)
            reason = "the pairing service is lost" if lost else f"{type(error).__name__}: {error}"
            self._channel.hang_up()
        with self._changed:
            self._down = "closed" if self._closing else reason
            self._changed.notify_all()
        if not self._closing:
            LOG.warning("rank %d trains on without gossip: %s", self.rank, reason)

    def _hear(self, word: str, *values: Any) -> None:
        with self._changed:
            if word == "mean":
                self._mean = values[0], values[1]
            elif word == "lost":
                self._lost[values[0]] = values[1]
            else:
                self._state = word
            self._changed.notify_all()
        if word == "match":
            self._average_with(*values)

    def _average_with(self, number: int, peer: int, unit: float | None) -> None:
        """One gossip step. If the exchange fails nothing has changed."""
        self._vectors.unit = unit or self._vectors.unit
        reason = ""
        try:
            self._peers.exchange(peer, self._vectors.offer(), self._vectors.received)
            self._vectors.average()
        except RuntimeError as error:
            reason = GLOO_EXTRAS.sub("", str(error).partition("\n")[0])
        with self._changed:
            self._state = "idle"
            self._say("done", number, not reason, reason)
            if reason:
                self._failed[peer] = reason
            else:
                self._counts["owed"] -= 1
                self._peer_counts[peer] += 1
            self._ask()
            self._changed.notify_all()
