"""The obvious implementation of the estimator, in which every tensor is formed: what the fast one is compared with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from forward_gradient.conftest import Net
from unlocked.forward_gradient import project

Tensors = dict[str, Tensor]


def contributions(layer: nn.Module, inputs: Tensor, output_gradient: Tensor) -> Tensors:
    """Every sample's contribution to the gradients of a layer's weight and bias: (N, *parameter shape)."""
    if isinstance(layer, nn.Linear):
        inputs = inputs.reshape(len(inputs), -1, inputs.shape[-1])
        gradient = output_gradient.reshape(len(inputs), -1, output_gradient.shape[-1])
        return {"weight": torch.einsum("npo,npi->noi", gradient, inputs), "bias": gradient.sum(1)}
    if isinstance(layer, nn.Conv2d):
        patches = functional.unfold(inputs, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        gradient = output_gradient.unflatten(1, (layer.groups, -1)).flatten(3)
        weight = torch.einsum("ngol,ngil->ngoi", gradient, patches.unflatten(1, (layer.groups, -1)))
        return {"weight": weight.reshape(len(inputs), *layer.weight.shape), "bias": output_gradient.sum((2, 3))}
    if isinstance(layer, nn.GroupNorm):
        normalised = functional.group_norm(inputs, layer.num_groups, eps=layer.eps)
    elif layer.training:
        normalised = functional.batch_norm(inputs, None, None, training=True, eps=layer.eps)
    else:
        normalised = functional.batch_norm(inputs, layer.running_mean, layer.running_var, eps=layer.eps)
    weight = (normalised * output_gradient).reshape(*inputs.shape[:2], -1).sum(2)
    return {"weight": weight, "bias": output_gradient.reshape(*inputs.shape[:2], -1).sum(2)}


def recorded(block: nn.Module, inputs: Tensor) -> tuple[Tensor, list[tuple[nn.Module, Tensor, Tensor]]]:
    """The block's outputs, and its layers' uses: (layer, inputs, outputs)."""
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []
    layers = [layer for layer in block.modules() if list(layer.parameters(recurse=False))]
    handles = [m.register_forward_hook(lambda m, i, o: calls.append((m, i[0].detach(), o))) for m in layers]
    outputs = block(inputs)
    for handle in handles:
        handle.remove()
    return outputs, calls


def read(block: nn.Module, outputs: Tensor, calls: list, cotangent: Tensor, space: str, averaged: bool) -> Tensors:
    """A gradient at the block's output as the tensors of a space."""
    if space == "activity":
        return {"output": cotangent}
    named = dict(block.named_parameters())
    if averaged:
        found = torch.autograd.grad(outputs, list(named.values()), cotangent, retain_graph=True)
        return dict(zip(named, found, strict=True))
    total = {name: p.new_zeros(len(outputs), *p.shape) for name, p in named.items()}
    for layer, inputs, at in calls:
        [gradient] = torch.autograd.grad(outputs, [at], cotangent, retain_graph=True)
        for own, values in contributions(layer, inputs, gradient).items():
            for name, parameter in named.items():
                if parameter is getattr(layer, own):
                    total[name] = total[name] + values
    return total


def estimate(
    net: Net, target: str, guess: str, space: str, averaged: bool, noise: Callable[..., Tensor] | None = None
) -> Tensors:
    """The blocks' gradient estimates by name, the last block's being its true gradient."""
    passes, features = [], net.inputs
    for block in net.blocks:
        outputs, calls = recorded(block, features)
        passes.append((block, outputs, calls))
        features = outputs
    loss = functional.cross_entropy(net.auxiliaries[-1](features), net.labels)
    found: Tensors = {}
    for k, (block, outputs, calls) in enumerate(passes):
        named = dict(block.named_parameters())
        [whole] = torch.autograd.grad(loss, [outputs], retain_graph=True)
        leaf = outputs.detach().requires_grad_()
        own_loss = functional.cross_entropy(net.auxiliaries[k](leaf), net.labels)
        [own] = torch.autograd.grad(own_loss, [leaf])
        if k == len(passes) - 1:
            true = torch.autograd.grad(outputs, list(named.values()), whole, retain_graph=True)
            found |= {f"blocks.{k}.{name}": g for name, g in zip(named, true, strict=True)}
            continue
        targets = read(block, outputs, calls, whole if target == "global" else own, space, averaged)
        if guess == "random":
            guessed = {name: noise(t.shape, t.dtype, t.device) for name, t in targets.items()}
        else:
            guessed = read(block, outputs, calls, own, space, averaged)
        parts = {
            name: project(t, guessed[name], per_sample=not averaged, normalise=guess != "random")
            for name, t in targets.items()
        }
        if space == "activity":
            gradients = torch.autograd.grad(outputs, list(named.values()), parts["output"], retain_graph=True)
            parts = dict(zip(named, gradients, strict=True))
        elif not averaged:
            parts = {name: part.sum(0) for name, part in parts.items()}
        found |= {f"blocks.{k}.{name}": part for name, part in parts.items()}
    return found
