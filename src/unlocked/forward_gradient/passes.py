"""The forward pass, cut at the borders of the blocks, and the way back through one block.

Stands inside `train` on the road configs -> plan -> train -> record -> item, under `estimator`.
Every block's input is a leaf of its own graph: a gradient stops there unless it is handed on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

PRECISIONS = ("float32", "bfloat16")  # of a block's layers: that of their parameters, or autocast


@dataclass
class LayerCall:
    """One use of a layer that owns parameters: what went in, and where its outputs stand in the block's graph.

    The place is a gradient edge, not the tensor: it stays the layer's own when the outputs are changed in place later.
    """

    layer: nn.Module
    inputs: Tensor
    outputs: GradientEdge
    shape: torch.Size


@dataclass
class BlockPass:
    """One block's part of the forward pass.

    inputs: (N, ...), a leaf; outputs: (N, ...), the end of the block's graph; calls: filled when asked for.
    """

    index: int
    block: nn.Module
    inputs: Tensor
    outputs: Tensor
    parameters: dict[str, Tensor]
    calls: list[LayerCall] = field(default_factory=list)

    @property
    def samples(self) -> int:
        """The batch size N."""
        return len(self.inputs)

    def named(self, gradients: Sequence[Tensor | None]) -> dict[str, Tensor]:
        """Gradients by parameter, given in their order; zeros where the outputs did not depend on the parameter."""
        pairs = zip(self.parameters.items(), gradients, strict=True)
        return {name: torch.zeros_like(p) if gradient is None else gradient for (name, p), gradient in pairs}

    def parameter_gradients(self, cotangent: Tensor) -> dict[str, Tensor]:
        """The parameters' gradients for the gradient `cotangent` at the outputs."""
        return self.named(pull(self.outputs, cotangent, list(self.parameters.values())))


@dataclass
class HeadPass:
    """One auxiliary net's loss, and its gradients: at the block's output (N, ...), and in the net's parameters."""

    loss: Tensor
    correct: Tensor
    output_gradient: Tensor | None
    gradients: dict[str, Tensor]


def forward(
    index: int,
    block: nn.Module,
    inputs: Tensor,
    *,
    chained: bool,
    record_calls: bool = False,
    update: bool = False,
    precision: str = "float32",
) -> BlockPass:
    """Run `inputs` (N, ...) through block number `index`.

    chained: gradients can be taken at the block's inputs too (but never at the images). record_calls: keep every
    parameter-owning layer's inputs and outputs. update: let BatchNorm update its running statistics, once. precision:
    see `PRECISIONS`; the outputs have the inputs' type whatever it is.
    """
    inputs = inputs.detach().requires_grad_(chained and index > 0)
    parameters = {name: p for name, p in block.named_parameters() if p.requires_grad}
    with ExitStack() as stack:
        if not update:
            stack.enter_context(frozen_statistics(block))
        calls = stack.enter_context(_recorded(block)) if record_calls else []
        stack.enter_context(torch.autocast(inputs.device.type, torch.bfloat16, enabled=precision == "bfloat16"))
        outputs = block(inputs).to(inputs.dtype)
    return BlockPass(index, block, inputs, outputs, parameters, calls)


def head(
    auxiliary: nn.Module, outputs: Tensor, labels: Tensor, *, gradient: bool, train: bool, update: bool = False
) -> HeadPass:
    """Evaluate `auxiliary` on a block's `outputs` (N, ...), detached, against `labels` (N,): mean cross-entropy.

    gradient: also at the outputs. train: also in the auxiliary net's parameters. update: as in `forward`.
    """
    leaf = outputs.detach().requires_grad_(gradient)
    parameters = {name: p for name, p in auxiliary.named_parameters() if p.requires_grad} if train else {}
    with ExitStack() as stack:
        stack.enter_context(torch.set_grad_enabled(gradient or train))
        if not update:
            stack.enter_context(frozen_statistics(auxiliary))
        scores = auxiliary(leaf)
        loss = functional.cross_entropy(scores, labels)
    correct = (scores.detach().argmax(1) == labels).sum()
    wanted = ([leaf] if gradient else []) + list(parameters.values())
    found = list(torch.autograd.grad(loss, wanted, materialize_grads=True)) if wanted else []
    at_outputs = found.pop(0) if gradient else None
    return HeadPass(loss.detach(), correct, at_outputs, dict(zip(parameters, found, strict=True)))


def pull(outputs: Tensor, cotangent: Tensor, wanted: Sequence[Tensor | GradientEdge]) -> tuple[Tensor | None, ...]:
    """Backpropagate `cotangent` from a block's `outputs` to the `wanted` places of its graph, and keep the graph.

    A place that the outputs do not depend on gets None.
    """
    if not wanted or not outputs.requires_grad:
        return (None,) * len(wanted)
    return torch.autograd.grad(outputs, wanted, cotangent, retain_graph=True, allow_unused=True)


def uses_batch_statistics(module: nn.Module) -> bool:
    """Whether a BatchNorm of `module` would normalise with the statistics of the batch: then samples interact."""
    return any(isinstance(m, _BatchNorm) and (m.training or m.running_mean is None) for m in module.modules())


@contextmanager
def frozen_statistics(*modules: nn.Module) -> Iterator[None]:
    """Inside, BatchNorm in training normalises as ever but leaves its running statistics alone.

    Forward-mode differentiation needs it, for it cannot follow a change in place of a buffer.
    """
    tracking = [
        layer
        for module in modules
        for layer in module.modules()
        if isinstance(layer, _BatchNorm) and layer.training and layer.track_running_stats
    ]
    for layer in tracking:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in tracking:
            layer.track_running_stats = True


@contextmanager
def _recorded(block: nn.Module) -> Iterator[list[LayerCall]]:
    """Inside, every use of a parameter-owning layer of `block` is appended to the list."""
    calls: list[LayerCall] = []

    def record(layer: nn.Module, arguments: tuple[Tensor, ...], outputs: Tensor) -> None:
        calls.append(LayerCall(layer, arguments[0].detach(), get_gradient_edge(outputs), outputs.shape))

    handles = [layer.register_forward_hook(record) for layer in block.modules() if owned_parameters(layer)]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def owned_parameters(layer: nn.Module) -> dict[str, Tensor]:
    """The trainable parameters that `layer` owns itself, by their name in it."""
    return {name: p for name, p in layer.named_parameters(recurse=False) if p.requires_grad}
