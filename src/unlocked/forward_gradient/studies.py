"""Measurements of paper B that are no training for a figure of accuracy, each a run with a record like any other.

Stands inside `train` on the road configs -> plan -> train -> record -> item, beside `trainer`. A run's `study` names
one: `estimator_error` (how far estimates are from the gradient, before and after a short training), and, on fresh nets,
`forward_mode_cost`, `batchnorm_coupling` and `auxiliary_cost`. Metrics carry what they compare in their name, as
`metric/case`; their values are one per block.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.func import jvp, vmap
from torch.nn.functional import cross_entropy

from unlocked import seeding
from unlocked.errors import choose
from unlocked.forward_gradient import forward_mode, network, passes, spaces, trainer
from unlocked.forward_gradient.estimator import estimate
from unlocked.forward_gradient.memory import peak_bytes
from unlocked.forward_gradient.network import Net
from unlocked.forward_gradient.projection import inner, scale
from unlocked.loop import Measurement
from unlocked.vision import auxiliary
from unlocked.vision.data import Dataset

Metrics = dict[str, Any]
Loss = Callable[[Tensor], Tensor]
Cases = Iterator[Metrics]  # a study: one step, and its metrics, at a time
SPACES = {"weight": ("weight", True), "weight_per_sample": ("weight", False), "activity": ("activity", False)}
REPEATS = 3  # timings, of which the fastest counts


def Training(run: DictConfig, data: Dataset) -> Any:
    """The study of `run`, as the training loop sees it."""
    if run.study == "estimator_error":
        return EstimatorError(run, data)
    return Study(run, data)


class Study:
    """A study on fresh nets: every case is a step, and one evaluation at the end reports them all."""

    spans = 1

    def __init__(self, run: DictConfig, data: Dataset) -> None:
        self.run, self.data = run, data
        self.cases = STUDIES[choose("study", run.study, STUDIES)]
        self.found: Metrics = {}
        self.steps = 0

    def advance(self, span: int, skip: int) -> Iterator[None]:
        """Do the cases from the `skip`-th on."""
        for number, metrics in enumerate(self.cases(self.run, self.data, skip), skip + 1):
            self.found |= metrics
            self.steps = number
            yield

    def healthy(self) -> bool:
        """A measurement cannot diverge."""
        return True

    def measure(self, spans: int) -> Measurement:
        """Everything found, at the end; nothing before."""
        return Measurement(self.found if spans else {}, self.steps, 0.0, 0.0)

    def counts(self) -> dict[str, Any]:
        """No gradients are taken for training."""
        return {"gradients": 0}

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {"found": self.found, "steps": self.steps}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.found, self.steps = dict(state["found"]), int(state["steps"])


class EstimatorError(trainer.Training):
    """A training with the local guess that measures, at its start and end, the error of every guess's estimate.

    At its start the auxiliary nets are as drawn; at its end they are trained.
    """

    def measure(self, spans: int) -> Measurement:
        """Accuracy and the rest as ever, and at both ends the estimator's error."""
        found = super().measure(spans)
        if spans in (0, self.spans):
            found.metrics.update(estimator_error(self.run, self.data, self.net, found.step))
        return found


def estimator_error(run: DictConfig, data: Dataset, net: Net, step: int) -> Metrics:
    """Cosine and relative error of estimates to the true gradient, per block, on one batch.

    Cases: `local/<space>`, `ntk/<space>`, and `random/<space>/<tangents>` with the means of 1, 2, 4 ... random guesses
    `dimension/<space>`: numbers that a guess has, per block.
    """
    images, labels = first_batch(run, data)
    measured = partial(estimate, net.blocks, inputs=images, labels=labels, target="global")
    truth = measured(net.auxiliaries, guess="global", space="activity").gradients
    redrawn = network.auxiliaries(run, data, run.auxiliary, seeding.integer(run.seed, "ntk of the error study", step))
    last = len(net.blocks) - 1
    metrics = dimensions(net, images)
    for name, (space, averaged) in SPACES.items():
        in_space = partial(measured, space=space, averaged=averaged)
        for guess, heads in (("local", net.auxiliaries), ("ntk", redrawn)):
            found = in_space(heads, guess=guess).gradients
            metrics |= compare(f"{guess}/{name}", found, truth, last)
        total: dict[str, Tensor] = {}
        for number in range(1, (run.tangents if name != "weight_per_sample" else min(run.tangents, 4)) + 1):
            generator = network.noise(run, "error study", step, number)
            found = in_space(net.auxiliaries, guess="random", generator=generator).gradients
            total = {key: total[key] + value if total else value for key, value in found.items()}
            if number & (number - 1) == 0:
                mean = {key: value / number for key, value in total.items()}
                metrics |= compare(f"random/{name}/{number}", mean, truth, last)
    return metrics


def dimensions(net: Net, images: Tensor) -> Metrics:
    """How many numbers a guess has in every block but the last: in all weights, or in one sample's output."""
    weights, outputs = [], []
    with torch.no_grad():
        for block in net.blocks[:-1]:
            with passes.frozen_statistics(block):
                images = block(images)
            weights.append(sum(p.numel() for p in block.parameters()))
            outputs.append(images[0].numel())
    return {"dimension/weight": weights, "dimension/weight_per_sample": weights, "dimension/activity": outputs}


def compare(case: str, found: dict[str, Tensor], truth: dict[str, Tensor], blocks: int) -> Metrics:
    """Cosine and relative error of the first `blocks` blocks' gradients, all tensors of a block joined."""
    cosine, error = [], []
    for block in range(blocks):
        names = [name for name in truth if name.startswith(f"blocks.{block}.")]
        estimated, true = (torch.cat([side[name].flatten() for name in names]) for side in (found, truth))
        cosine.append(float(torch.cosine_similarity(estimated, true, dim=0)))
        error.append(float((estimated - true).norm() / true.norm()))
    return {f"error_cosine/{case}": cosine, f"relative_error/{case}": error}


def first_batch(run: DictConfig, data: Dataset, size: int | None = None) -> tuple[Tensor, Tensor]:
    """A seeded batch of training images, not augmented, and its labels."""
    order = seeding.generator(run.seed, "study").permutation(len(data.train))
    return data.train.batch(order[: size or run.optim.batch_size])


def chain(net: Net, images: Tensor) -> list[Tensor]:
    """The inputs of every block, statistics untouched."""
    inputs = [images]
    with torch.no_grad(), passes.frozen_statistics(*net.blocks):
        for block in net.blocks[:-1]:
            inputs.append(block(inputs[-1]))
    return inputs


def auxiliary_cost(run: DictConfig, data: Dataset, skip: int) -> Cases:
    """Parameters and FLOPs (one per multiply-add) of the blocks and of every auxiliary net on them."""
    net = network.build(run, data)
    net.parts.eval()
    inputs = chain(net, first_batch(run, data, 1)[0])
    shapes = [x.shape[1:] for x in inputs]
    with torch.no_grad():
        outputs = [*shapes[1:], net.blocks[-1](inputs[-1]).shape[1:]]
    parts = {"blocks": list(zip(net.blocks, shapes, strict=True))}
    parts["classifier"] = [(net.auxiliaries[-1], outputs[-1])]
    for name in auxiliary.names():
        heads = network.auxiliaries(run, data, name, run.seed)
        parts[name] = list(zip(heads[:-1], outputs[:-1], strict=True))
    for name, modules in list(parts.items())[skip:]:
        counted = [auxiliary.counts(module.cpu(), shape) for module, shape in modules]
        yield {f"parameters/{name}": [p for p, _ in counted], f"flops/{name}": [f for _, f in counted]}


def forward_mode_cost(run: DictConfig, data: Dataset, skip: int) -> Cases:
    """Seconds and peak bytes from each block's input to the loss, block by block.

    `jvp`: one Jacobian-vector product, with the tangent at the block's output, without anything kept for a way back.
    `backpropagation`: forward, and back to the gradients of the parameters of this block and all later ones.
    `forward`: the loss alone. `tangents`: as many products at once as exact per-sample coefficients take at a time
    (`forward_mode.CHUNK`; bytes only: the time is that of as many products).
    """
    net = network.build(run, data)
    images, labels = first_batch(run, data)
    inputs = chain(net, images)
    for start in range(skip, len(net.blocks)):
        metrics: Metrics = {}
        for kind, make in COSTS.items():
            compute = make(net, start, inputs[start], labels, network.noise(run, "cost", start))
            if kind != "tangents":
                metrics[f"seconds/{kind}/{start}"] = fastest(compute, run.runtime.device)
            metrics[f"bytes/{kind}/{start}"] = float(peak_bytes(compute, run.runtime.device))
        yield metrics


def _tail(net: Net, start: int, features: Tensor, labels: Tensor) -> Tensor:
    for block in net.blocks[start:]:
        features = block(features)
    return cross_entropy(net.auxiliaries[-1](features), labels)


def _forward(net: Net, start: int, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Callable[[], object]:
    def compute() -> Tensor:
        with torch.no_grad(), passes.frozen_statistics(net.blocks, net.auxiliaries):
            return _tail(net, start, inputs, labels)

    return compute


def _one_tangent(loss: Loss, features: Tensor, tangent: Tensor) -> Tensor:
    return jvp(loss, (features,), (tangent,))[1]


def _tangents(loss: Loss, features: Tensor, tangent: Tensor) -> Tensor:
    """One tangent for each of the first samples, along which that sample alone moves."""

    def slope(row: Tensor) -> Tensor:
        return jvp(lambda amount: loss(features + scale(amount, tangent)), (torch.zeros_like(row),), (row,))[1]

    one_hot = torch.eye(len(features), dtype=features.dtype, device=features.device)
    return vmap(slope)(one_hot[: forward_mode.CHUNK])


def _forward_mode(
    slopes: Callable[[Loss, Tensor, Tensor], Tensor],
    net: Net, start: int, inputs: Tensor, labels: Tensor, generator: torch.Generator,
) -> Callable[[], object]:  # fmt: skip
    """`slopes` of the rest of the net along a random tangent of a block's output."""

    def compute() -> Tensor:
        with torch.no_grad(), passes.frozen_statistics(net.blocks, net.auxiliaries):
            features = net.blocks[start](inputs)
            kind = {"dtype": features.dtype, "device": features.device}
            tangent = torch.randn(features.shape, generator=generator, **kind)
            return slopes(lambda moved: _tail(net, start + 1, moved, labels), features, tangent)

    return compute


def _backpropagation(
    net: Net, start: int, inputs: Tensor, labels: Tensor, generator: torch.Generator
) -> Callable[[], object]:
    parameters = [*net.blocks[start:].parameters(), *net.auxiliaries[-1].parameters()]

    def compute() -> object:
        with passes.frozen_statistics(net.blocks, net.auxiliaries):
            return torch.autograd.grad(_tail(net, start, inputs, labels), parameters)

    return compute


COSTS: dict[str, Callable[..., Callable[[], object]]] = {
    "forward": _forward,
    "jvp": partial(_forward_mode, _one_tangent),
    "tangents": partial(_forward_mode, _tangents),
    "backpropagation": _backpropagation,
}


def fastest(compute: Callable[[], object], device: str) -> float:
    """Seconds of the fastest of `REPEATS` calls after one that warms up."""
    times = []
    for _ in range(REPEATS + 1):
        synchronise(device)
        started = time.perf_counter()
        compute()
        synchronise(device)
        times.append(time.perf_counter() - started)
    return min(times[1:])


def synchronise(device: str) -> None:
    """Wait for a GPU's queue."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def batchnorm_coupling(run: DictConfig, data: Dataset, skip: int) -> Cases:
    """Relative error of per-sample coefficients from one Jacobian-vector product, against the exact <T, G>.

    One pass differentiates the vector of losses along all samples' directions at once, which is right where samples do
    not interact. Cases: `batch_statistics`, `running_statistics` (evaluation mode), `group_norm`; random guesses at
    every block's output but the last, in float64. `batch_level_error`: of the sum over samples.
    """
    for norm, case in (("batch", "batch_statistics"), ("batch", "running_statistics"), ("group", "group_norm"))[skip:]:
        net = network.build(run, data, norm)
        net.parts.double()
        images, labels = first_batch(run, data)
        if case == "running_statistics":
            with torch.no_grad():  # what they would be in training, roughly
                for _ in range(20):
                    network.Scores(net)(images.double())
            net.parts.eval()
        per_sample, batch = coupling_errors(run, net, images.double(), labels)
        yield {f"per_sample_error/{case}": per_sample, f"batch_level_error/{case}": batch}


def coupling_errors(run: DictConfig, net: Net, images: Tensor, labels: Tensor) -> tuple[list[float], list[float]]:
    """Relative errors of one-pass coefficients at each block's output but the last, per sample and of their sum."""
    blocks = [passes.forward(0, net.blocks[0], images, chained=True)]
    for index, block in enumerate(net.blocks[1:], 1):
        blocks.append(passes.forward(index, block, blocks[-1].outputs, chained=True))
    head = passes.head(net.auxiliaries[-1], blocks[-1].outputs, labels, gradient=True, train=False)
    per_sample, batch = [], []
    cotangent = head.output_gradient
    for index, block in reversed(list(enumerate(blocks[:-1]))):
        [cotangent] = passes.pull(blocks[index + 1].outputs, cotangent, [blocks[index + 1].inputs])
        guess = torch.randn(
            block.outputs.shape, generator=network.noise(run, "coupling", index), dtype=images.dtype,
            device=images.device,
        )  # fmt: skip
        tail = [*net.blocks[index + 1 :], net.auxiliaries[-1]]
        found = one_pass(spaces.Activity(averaged=False), block, tail, labels, guess)
        exact = inner(cotangent, guess, True)
        per_sample.append(float((found - exact).norm() / exact.norm()))
        batch.append(float((found.sum() - exact.sum()).abs() / exact.sum().abs()))
    return per_sample[::-1], batch[::-1]


def one_pass(
    space: spaces.Space, block: passes.BlockPass, tail: list[nn.Module], labels: Tensor, guess: Tensor
) -> Tensor:
    """<T_i, G_i> as one JVP would have it, (N,); wrong where samples interact, which `forward_mode` refuses."""

    def losses(amount: Tensor) -> Tensor:
        scores = space.perturb(block, "output", guess, amount)
        for module in tail:
            scores = module(scores)
        return cross_entropy(scores, labels, reduction="none") / len(labels)

    zeros = guess.new_zeros(len(guess))
    with torch.no_grad(), passes.frozen_statistics(*tail):
        return jvp(losses, (zeros,), (torch.ones_like(zeros),))[1]


STUDIES: dict[str, Callable[[DictConfig, Dataset, int], Cases]] = {
    "auxiliary_cost": auxiliary_cost,
    "forward_mode_cost": forward_mode_cost,
    "batchnorm_coupling": batchnorm_coupling,
}
