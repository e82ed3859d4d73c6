"""Measurements on fresh nets, which are no training for a figure of accuracy, each a run with a record like any other.

Metrics carry what they compare in their name, as `metric/case`; their values are one per block.
"""

from __future__ import annotations

import timeit
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.nn.functional import cross_entropy

from unlocked import seeding
from unlocked.forward_gradient import forward_mode, passes, spaces
from unlocked.forward_gradient.estimator import estimate
from unlocked.forward_gradient.memory import peak_bytes
from unlocked.forward_gradient.method import Method
from unlocked.forward_gradient.projection import scale
from unlocked.papers.base import Measurement
from unlocked.papers.forward_gradient import network
from unlocked.papers.forward_gradient import study_settings as settings
from unlocked.papers.forward_gradient.network import Net
from unlocked.papers.forward_gradient.settings import ForwardRun
from unlocked.vision import auxiliary, networks
from unlocked.vision.data.splits import Dataset

Metrics = dict[str, Any]
Case = Callable[[], Metrics]
REPEATS = 3  # timings, of which the fastest counts


def first_batch(run: ForwardRun, data: Dataset) -> tuple[Tensor, Tensor]:
    """A seeded batch of training images, not augmented, and its labels."""
    order = seeding.generator(run.seed, "study").permutation(len(data.train))
    return data.train.batch(order[: run.optim.batch_size])


class Study:
    """A study on fresh nets: every case is a step, and one evaluation at the end reports them all."""

    spans = 1

    def __init__(self, run: settings.FreshNetStudy, data: Dataset) -> None:
        self.cases = list(CASES[run.study](run, data))
        self.metrics: Metrics = {}
        self.steps = 0

    def length(self, span: int) -> int:
        return len(self.cases)

    def advance(self, span: int, skip: int) -> Iterator[None]:
        for case in self.cases[skip:]:
            self.metrics |= case()
            self.steps += 1
            yield

    def healthy(self) -> bool:
        return True

    def measure(self, spans: int) -> Measurement:
        return Measurement(self.metrics if spans else {}, self.steps, 0.0, 0.0)

    def counts(self) -> dict[str, Any]:
        return {"gradients": 0}  # none for training

    def state(self) -> dict[str, Any]:
        return {"metrics": self.metrics, "steps": self.steps}

    def restore(self, state: dict[str, Any]) -> None:
        self.metrics, self.steps = dict(state["metrics"]), state["steps"]


def auxiliary_cost(run: settings.FreshNetStudy, data: Dataset) -> Iterator[Case]:
    """Parameters and FLOPs (one per multiply-add) of the blocks and of every auxiliary net on them."""
    net = network.build(run, data).eval()
    inputs = passes.chain(net.blocks, first_batch(run, data)[0][:1])
    with torch.no_grad():
        outputs = [*inputs[1:], net.blocks[-1](inputs[-1])]

    def counted(name: str, modules: Any, inputs: list[Tensor]) -> Metrics:
        counts = [auxiliary.counts(m.cpu(), x.shape[1:]) for m, x in zip(modules, inputs, strict=True)]
        return {f"parameters/{name}": [p for p, _ in counts], f"flops/{name}": [f for _, f in counts]}

    yield partial(counted, "blocks", net.blocks, inputs)
    yield partial(counted, "classifier", [net.auxiliaries[-1]], outputs[-1:])
    for name in networks.AUXILIARIES:
        yield partial(counted, name, network.auxiliaries(run, data, name, run.seed)[:-1], outputs[:-1])


def forward_mode_cost(run: settings.FreshNetStudy, data: Dataset) -> Iterator[Case]:
    """Seconds and peak bytes of each of `computations`, block by block.

    `tangents`: bytes only, for the time is that of as many products.
    """
    net, device = network.build(run, data), run.runtime.device
    images, labels = first_batch(run, data)

    def cost(start: int, inputs: Tensor) -> Metrics:
        metrics: Metrics = {}
        for kind, compute in computations(net, start, inputs, labels, network.noise(run, "cost", start)).items():
            if kind != "tangents":
                metrics[f"seconds/{kind}/{start}"] = fastest(compute, device)
            metrics[f"bytes/{kind}/{start}"] = float(peak_bytes(compute, device))
        return metrics

    for start, inputs in enumerate(passes.chain(net.blocks, images)):
        yield partial(cost, start, inputs)


def computations(
    net: Net, start: int, inputs: Tensor, labels: Tensor, generator: torch.Generator
) -> dict[str, Callable[[], object]]:
    """What can be computed between the inputs of block `start` and the loss.

    `forward`: the loss alone. `jvp`: one Jacobian-vector product along noise at the block's output, without anything
    kept for a way back. `tangents`: as many at once as exact per-sample coefficients take at a time
    (`forward_mode.CHUNK`), each along one sample's noise. `backpropagation`: forward, and back to the gradients of the
    parameters of this block and all later ones.
    """
    parameters = [*net.blocks[start:].parameters(), *net.auxiliaries[-1].parameters()]

    def loss(features: Tensor, first: int) -> Tensor:
        for block in net.blocks[first:]:
            features = block(features)
        return cross_entropy(net.auxiliaries[-1](features), labels)

    def slope(features: Tensor, tangent: Tensor) -> Tensor:
        return forward_mode.derivative(lambda moved: loss(moved, start + 1), features, tangent)

    def slopes(features: Tensor, tangent: Tensor) -> Tensor:
        one_hot = torch.eye(len(features), dtype=features.dtype, device=features.device)

        def of_one(row: Tensor) -> Tensor:
            zeros = torch.zeros_like(row)
            return forward_mode.derivative(lambda by: loss(features + scale(by, tangent), start + 1), zeros, row)

        return vmap(of_one)(one_hot[: forward_mode.CHUNK])

    def along_noise(of: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        features = net.blocks[start](inputs)
        noise = torch.randn(features.shape, generator=generator, dtype=features.dtype, device=features.device)
        return of(features, noise)

    def frozen(compute: Callable[[], object], forward_only: bool = True) -> object:
        with torch.set_grad_enabled(not forward_only), passes.frozen_statistics(net.blocks, net.auxiliaries):
            return compute()

    return {
        "forward": lambda: frozen(lambda: loss(inputs, start)),
        "jvp": lambda: frozen(lambda: along_noise(slope)),
        "tangents": lambda: frozen(lambda: along_noise(slopes)),
        "backpropagation": lambda: frozen(lambda: torch.autograd.grad(loss(inputs, start), parameters), False),
    }


def fastest(compute: Callable[[], object], device: str) -> float:
    """Seconds of the fastest of `REPEATS` calls after one that warms up."""

    def whole() -> None:
        compute()
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)

    return min(timeit.repeat(whole, number=1, repeat=REPEATS + 1)[1:])


def batchnorm_coupling(run: settings.FreshNetStudy, data: Dataset) -> Iterator[Case]:
    """Relative error of per-sample coefficients from one Jacobian-vector product, against the exact <T, G>.

    One pass differentiates the vector of losses along all samples' directions at once, which is right where samples do
    not interact. Cases: `batch_statistics`, `running_statistics` (evaluation mode), `group_norm`; random guesses at
    every block's output but the last, in float64. `batch_level_error`: of the sum over samples.
    """
    for norm, case in (("batch", "batch_statistics"), ("batch", "running_statistics"), ("group", "group_norm")):
        yield partial(one_pass_errors, run, data, norm, case)


def one_pass_errors(run: settings.FreshNetStudy, data: Dataset, norm: str, case: str) -> Metrics:
    """A case of `batchnorm_coupling`."""
    net = network.build(run, data, norm).double()
    images, labels = first_batch(run, data)
    images = images.double()
    if case == "running_statistics":
        with torch.no_grad():  # what they would be in training, roughly
            for _ in range(20):
                net(images)
        net.eval()
    guesses: list[Tensor] = []

    def noise(shape: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
        generator = network.noise(run, "coupling", len(guesses))
        guesses.append(torch.randn(shape, generator=generator, dtype=dtype, device=device))
        return guesses[-1]

    projected = estimate(net.blocks, net.auxiliaries, images, labels, Method("global", "random"), noise=noise)
    metrics: Metrics = {f"per_sample_error/{case}": [], f"batch_level_error/{case}": []}
    for index, (guess, inputs) in enumerate(zip(guesses, passes.chain(net.blocks, images), strict=False)):
        step = passes.forward(index, net.blocks[index], inputs, chained=False)
        tail, space = [*net.blocks[index + 1 :], net.auxiliaries[-1]], spaces.Activity(averaged=False)
        found = forward_mode.slopes(step, tail, labels, space, {"output": guess}, one_pass=True)
        exact = projected.coefficients[f"blocks.{index}.output"]
        for error, one, true in (("per_sample", found, exact), ("batch_level", found.sum(), exact.sum())):
            metrics[f"{error}_error/{case}"].append(float((one - true).norm() / true.norm()))
    return metrics


CASES: dict[str, Callable[[settings.FreshNetStudy, Dataset], Iterator[Case]]] = {
    "auxiliary_cost": auxiliary_cost,
    "forward_mode_cost": forward_mode_cost,
    "batchnorm_coupling": batchnorm_coupling,
}
