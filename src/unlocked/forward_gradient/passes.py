"""The forward pass, cut at the borders of the blocks, and the way back through one block.

Every block's input is a leaf of its own graph: a gradient stops there unless it is handed on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.modules.batchnorm import _BatchNorm

from unlocked.errors import SettingError

Loss = Callable[[Tensor, Tensor], Tensor]  # (scores, labels) to the batch's mean loss, a number
Tensors = dict[str, Tensor]


@dataclass
class LayerCall:
    """One use of a layer that owns parameters."""

    layer: nn.Module
    inputs: Tensor
    outputs: GradientEdge  # not the tensor, which may be changed in place later
    shape: torch.Size


@dataclass
class BlockPass:
    """One block's part of the forward pass, the way back through it, and what the estimator finds there."""

    index: int
    block: nn.Module
    inputs: Tensor  # (N, ...), a leaf
    outputs: Tensor  # (N, ...)
    calls: list[LayerCall]  # when asked for
    whole: Tensor | None = None  # the gradient of the net's loss at the outputs
    upstream: Tensor | None = None  # the same at the inputs, where these ask for one
    from_head: Tensor | None = None  # the gradient at the outputs of the auxiliary loss that the guess comes from
    target: Tensor | None = None  # at the outputs
    vectors: dict[str, Any] = field(default_factory=dict)  # the target in the space

    def __post_init__(self) -> None:
        self.parameters = trainable(self.block)

    def pull(self, cotangent: Tensor, places: Sequence[Tensor | GradientEdge] = ()) -> Sequence[Tensor | None]:
        """Backpropagate `cotangent` from the outputs to places of the graph, which is kept; None where none arrives.

        `whole` goes on to the inputs the first time, on the same way back.
        """
        goes_on = cotangent is self.whole and self.upstream is None and self.inputs.requires_grad
        wanted = [*places, *[self.inputs] * goes_on]
        if not wanted or not self.outputs.requires_grad:
            return [None] * len(places)
        found = torch.autograd.grad(self.outputs, wanted, cotangent, retain_graph=True, allow_unused=True)
        if goes_on:
            self.upstream = found[-1]
        return found[: len(places)]

    def parameter_gradients(self, cotangent: Tensor) -> Tensors:
        """The parameters' gradients for the gradient `cotangent` at the outputs; zeros where these do not depend."""
        found = zip(self.parameters.items(), self.pull(cotangent, list(self.parameters.values())), strict=True)
        return {name: torch.zeros_like(p) if gradient is None else gradient for (name, p), gradient in found}


def forward(
    index: int, block: nn.Module, inputs: Tensor, *, chained: bool, record_calls: bool = False, update: bool = False,
    precision: str = "float32",
) -> BlockPass:  # fmt: skip
    """Run `inputs` (N, ...) through block number `index`.

    chained: gradients can be taken at the block's inputs too (but never at the images). update: let BatchNorm update
    its running statistics, once. precision: `bfloat16` is autocast; the outputs have the inputs' type all the same.
    """
    inputs = inputs.detach().requires_grad_(chained and index > 0)
    low = precision == "bfloat16"
    with ExitStack() as stack:
        stack.enter_context(intact(inputs, "block", block))
        if not update:
            stack.enter_context(frozen_statistics(block))
        calls = stack.enter_context(_recorded(block)) if record_calls else []
        stack.enter_context(torch.autocast(inputs.device.type, torch.bfloat16, enabled=low))
        outputs = run(block, inputs)
    if low:
        outputs = outputs.to(inputs.dtype if inputs.is_floating_point() else torch.float32)
    return BlockPass(index, block, inputs, outputs, calls)


def run(block: nn.Module, inputs: Tensor) -> Tensor:
    """A block's outputs; `SettingError` if they are not one tensor."""
    outputs = block(inputs)
    if not isinstance(outputs, Tensor):
        right = f"gives a {type(outputs).__name__}: a block must give one tensor, so wrap it in a module that picks it"
        raise SettingError("block", type(block).__name__, right)
    return outputs


@dataclass
class HeadPass:
    """One auxiliary net's loss, and its gradients: at the block's output (N, ...), and in the net's parameters."""

    loss: Tensor
    correct: Tensor
    output_gradient: Tensor | None
    gradients: Tensors


def head(
    auxiliary: nn.Module, outputs: Tensor, labels: Tensor, loss: Loss, *, gradient: bool, train: bool, update: bool
) -> HeadPass:
    """The `loss` of `auxiliary` on a block's `outputs` (N, ...), detached, and the `labels` (N, ...).

    gradient: also at the outputs. train: also in the auxiliary net's parameters. update: as in `forward`.
    """
    leaf = outputs.detach().requires_grad_(gradient)
    parameters = trainable(auxiliary) if train else {}
    with torch.set_grad_enabled(gradient or train), frozen_statistics(*[] if update else [auxiliary]):
        with intact(leaf, "auxiliary", auxiliary):
            scores = auxiliary(leaf)
        mean = loss(scores, labels)
    wanted = [leaf] * gradient + list(parameters.values())
    found = list(torch.autograd.grad(mean, wanted, materialize_grads=True)) if wanted else []
    at_outputs = found.pop(0) if gradient else None
    has_classes = scores.dim() > 1 and labels.shape == scores.shape[:1] + scores.shape[2:]
    if has_classes and not labels.is_floating_point():
        correct = (scores.argmax(1) == labels).sum()
    else:
        correct = labels.new_zeros((), dtype=torch.long)
    return HeadPass(mean.detach(), correct, at_outputs, dict(zip(parameters, found, strict=True)))


def trainable(module: nn.Module, recurse: bool = True) -> Tensors:
    """The trainable parameters of a module by name; without `recurse` those that it owns itself."""
    return {name: p for name, p in module.named_parameters(recurse=recurse) if p.requires_grad}


def uses_batch_statistics(module: nn.Module) -> bool:
    """Whether a BatchNorm of `module` would normalise with the statistics of the batch: then samples interact."""
    return any(isinstance(m, _BatchNorm) and (m.training or m.running_mean is None) for m in module.modules())


@contextmanager
def intact(inputs: Tensor, kind: str, module: nn.Module) -> Iterator[None]:
    """Inside, `module` runs on `inputs`; `SettingError` if it changes them in place, where others still need them."""
    right = "changes its inputs, which other parts read: its first layer must not work in place (inplace=True)"
    version = inputs._version
    try:
        yield
    except RuntimeError as error:
        if "in-place operation" in str(error):  # torch's, of inputs at which a gradient is taken
            raise SettingError(kind, type(module).__name__, right) from error
        raise
    if inputs._version != version:
        raise SettingError(kind, type(module).__name__, right)


@contextmanager
def frozen_statistics(*modules: nn.Module) -> Iterator[None]:
    """Inside, BatchNorm in training normalises as ever but leaves its running statistics alone.

    Forward-mode differentiation cannot follow a change in place of a buffer.
    """
    layers = [layer for module in modules for layer in module.modules() if isinstance(layer, _BatchNorm)]
    tracking = [layer for layer in layers if layer.training and layer.track_running_stats]
    for layer in tracking:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in tracking:
            layer.track_running_stats = True


def chain(blocks: Sequence[nn.Module], inputs: Tensor) -> list[Tensor]:
    """The inputs of every block in a forward pass of its own, which changes nothing and keeps no graph."""
    found = [inputs]
    with torch.no_grad(), frozen_statistics(*blocks):
        for block in list(blocks)[:-1]:
            found.append(block(found[-1]))
    return found


@contextmanager
def _recorded(block: nn.Module) -> Iterator[list[LayerCall]]:
    calls: list[LayerCall] = []

    def record(layer: nn.Module, arguments: tuple[Tensor, ...], outputs: Tensor) -> None:
        if not (isinstance(outputs, Tensor) and len(arguments) == 1):
            right = "has no per-sample weight gradients: it must take and give one tensor; take averaged, or activity"
            raise SettingError("layer", type(layer).__name__, right)
        calls.append(LayerCall(layer, arguments[0].detach(), get_gradient_edge(outputs), outputs.shape))

    with hooked([layer for layer in block.modules() if trainable(layer, recurse=False)], record):
        yield calls


@contextmanager
def hooked(layers: Sequence[nn.Module], hook: Callable[..., Tensor | None]) -> Iterator[None]:
    """Inside, `hook` is a forward hook of the layers."""
    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
