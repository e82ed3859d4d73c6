"""Gradients of small networks: of k of them at k parameter vectors in one computation, or of one without autograd.

For models whose samples share no state (no BatchNorm). A chain of linear layers and ReLUs has its two passes written
out: in networks of microseconds autograd costs more than the arithmetic. Its products are the ones that autograd would
ask for, of the same matrices in the same order, so one network's gradient is autograd's to the last bit. A stack of any
other model goes through `torch.func.vmap`, which on CPU is slower than a loop where there are convolutions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap


def stacked_gradient(model: nn.Module) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """A function of parameters (k, d), images (k, B, ...), labels (k, B) and gradients (k, d), which it overwrites; it
    returns losses (k,).
    """
    if (known := chain(model)) is not None:
        return known.gradient_
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    sizes = [shape.numel() for shape in shapes.values()]

    def one(parameters: list[Tensor], images: Tensor) -> Tensor:
        return functional_call(model, dict(zip(shapes, parameters, strict=True)), (images,))

    def gradient_(flat: Tensor, images: Tensor, labels: Tensor, out: Tensor) -> Tensor:
        pieces = zip(flat.detach().split(sizes, dim=1), shapes.values(), strict=True)
        parameters = [piece.view(-1, *shape).requires_grad_() for piece, shape in pieces]
        logits = vmap(one)(parameters, images)
        each = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        losses = each.view(labels.shape).mean(1)
        gradients = torch.autograd.grad(losses.sum(), parameters)
        torch.cat([gradient.flatten(1) for gradient in gradients], 1, out=out)
        return losses.detach()

    return gradient_


class Chain:
    """Linear layers with bias, of which some have a ReLU after them (`rectified`), behind a Flatten.

    Flat vectors are (d,) or a stack (k, d), in the order of the model's parameters; images (..., B, C, H, W) and labels
    (..., B) have the same dimensions in front.
    """

    def __init__(self, layers: list[nn.Linear], rectified: list[bool]) -> None:
        self.rectified = rectified
        self.shapes = [tensor.shape for layer in layers for tensor in (layer.weight, layer.bias)]
        self.sizes = [shape.numel() for shape in self.shapes]

    def pieces(self, flat: Tensor) -> list[Tensor]:
        """Weights (..., outputs, inputs) and biases (..., outputs) in turn, as views of flat vectors."""
        parts = zip(flat.split(self.sizes, -1), self.shapes, strict=True)
        return [part.view(*flat.shape[:-1], *shape) for part, shape in parts]

    def outputs(self, pieces: list[Tensor], images: Tensor) -> list[Tensor]:
        """What goes into the first layer (..., B, inputs), then what every layer makes of it; the last are logits."""
        found = [images.flatten(-3)]
        for weight, bias, rectified in zip(pieces[::2], pieces[1::2], self.rectified, strict=True):
            if weight.ndim == 2:
                features = torch.addmm(bias, found[-1], weight.mT)
            else:
                features = torch.baddbmm(bias[:, None], found[-1], weight.mT)
            found.append(features.relu_() if rectified else features)
        return found

    def gradient_(self, flat: Tensor, images: Tensor, labels: Tensor, out: Tensor) -> Tensor:
        """Overwrite `out` (..., d) by the gradient of the mean loss at `flat` (..., d); returns that loss (...)."""
        return self.gradient_of_pieces_(self.pieces(flat), images, labels, self.pieces(out))

    def gradient_of_pieces_(self, pieces: list[Tensor], images: Tensor, labels: Tensor, out: list[Tensor]) -> Tensor:
        """The same where vectors lie in pieces already."""
        features = self.outputs(pieces, images)
        slope, loss = cross_entropy(features[-1], labels)
        for layer in range(len(self.rectified) - 1, -1, -1):
            if self.rectified[layer]:
                slope = torch.ops.aten.threshold_backward(slope, features[layer + 1], 0)
            weight, bias = out[2 * layer : 2 * layer + 2]
            if slope.ndim == 2:
                weight.copy_(slope.mT @ features[layer])
            else:
                weight.copy_((features[layer].mT @ slope).mT)
            torch.sum(slope, -2, out=bias)
            if layer:
                slope = slope @ pieces[2 * layer]
        return loss


def cross_entropy(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of the mean cross-entropy (...) in the logits (..., B, classes), and that loss."""
    logs = F.log_softmax(logits, -1)
    towards = torch.zeros_like(logs).scatter_(-1, labels[..., None], -1 / labels.shape[-1])
    slope = torch.ops.aten._log_softmax_backward_data(towards, logs, logs.ndim - 1, logs.dtype)
    if labels.ndim == 1:
        return slope, F.nll_loss(logs, labels)
    each = F.nll_loss(logs.flatten(0, -2), labels.flatten(), reduction="none")
    return slope, each.view(labels.shape).mean(-1)


def chain(model: nn.Module) -> Chain | None:
    """The model as a chain; None if it is anything else."""
    first, *layers = model.children() if isinstance(model, nn.Sequential) and len(model) else (model,)
    flattens = isinstance(first, nn.Flatten) and (first.start_dim, first.end_dim) == (1, -1)
    linear: list[nn.Linear] = []
    rectified: list[bool] = []
    for layer in layers:
        if type(layer) is nn.Linear and layer.bias is not None:
            linear.append(layer)
            rectified.append(False)
        elif type(layer) is nn.ReLU and linear:
            rectified[-1] = True
        else:
            return None
    return Chain(linear, rectified) if flattens and linear else None
