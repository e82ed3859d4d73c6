"""Per-sample contributions: they sum to the batch gradient, and their response is the adjoint."""

from __future__ import annotations

import pytest
import torch
from conftest import small_net
from torch import nn

from unlocked.errors import SettingError
from unlocked.forward_gradient import passes, per_sample, spaces

LAYERS = {
    "linear": (nn.Linear(6, 4), (5, 6)),
    "linear over places": (nn.Linear(6, 4), (5, 3, 2, 6)),
    "convolution": (nn.Conv2d(4, 6, 3, padding=1), (5, 4, 6, 6)),
    "strided": (nn.Conv2d(4, 6, 3, stride=2, padding=1), (5, 4, 7, 7)),
    "1×1": (nn.Conv2d(4, 6, 1, stride=2), (5, 4, 6, 6)),
    "grouped and dilated": (nn.Conv2d(4, 6, (3, 2), padding=(2, 1), dilation=2, groups=2), (5, 4, 6, 6)),
    "batch norm": (nn.BatchNorm2d(4), (5, 4, 3, 3)),
    "batch norm, running": (nn.BatchNorm2d(4).eval(), (5, 4, 3, 3)),
    "batch norm, flat": (nn.BatchNorm1d(4), (5, 4)),
    "group norm": (nn.GroupNorm(2, 4), (5, 4, 3, 3)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_contributions_sum_to_the_gradient(name: str) -> None:
    layer, shape = LAYERS[name]
    layer = layer.double()
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(*shape, generator=generator, dtype=torch.float64)
    outputs = layer(inputs)
    cotangent = torch.randn(*outputs.shape, generator=generator, dtype=torch.float64)
    rule = per_sample.rule(layer)
    found = rule.gradient(layer, inputs, cotangent)
    right = torch.autograd.grad(outputs, [layer.weight, layer.bias], cotangent)
    for parameter, gradient in zip(("weight", "bias"), right, strict=True):
        assert found[parameter].shape == (5, *gradient.shape)
        torch.testing.assert_close(found[parameter].sum(0), gradient, atol=1e-12, rtol=1e-12)
        direction = torch.randn(*found[parameter].shape, generator=generator, dtype=torch.float64)
        response = rule.response(layer, inputs, parameter, direction)
        one_way = (found[parameter] * direction).flatten(1).sum(1)
        other_way = (cotangent * response).flatten(1).sum(1)
        torch.testing.assert_close(one_way, other_way, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_contributions_of_whole_blocks_sum_to_the_gradient(norm: str) -> None:
    net = small_net(norm)
    space = spaces.PerSampleWeight()
    outputs = net.inputs
    for index, block in enumerate(net.blocks):
        step = passes.forward(index, block, outputs, chained=False, record_calls=True)
        outputs = step.outputs
        cotangent = torch.randn(step.outputs.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        found = space.read(step, cotangent, passes.pull(step.outputs, cotangent, space.wanted(step)))
        right = passes.pull(step.outputs, cotangent, list(step.parameters.values()))
        for name, gradient in zip(step.parameters, right, strict=True):
            torch.testing.assert_close(found[name].sum(0), gradient, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("norm", ["group"])
def test_without_interaction_a_contribution_is_the_gradient_of_the_sample_alone(norm: str) -> None:
    net = small_net(norm, samples=3)
    space = spaces.PerSampleWeight()

    def contributions(inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        step = passes.forward(0, net.blocks[0], inputs, chained=False, record_calls=True)
        cotangent = torch.ones_like(step.outputs)
        return space.read(step, cotangent, passes.pull(step.outputs, cotangent, space.wanted(step)))

    together = contributions(net.inputs)
    for sample in range(3):
        alone = contributions(net.inputs[sample : sample + 1])
        for name, tensor in alone.items():
            torch.testing.assert_close(together[name][sample], tensor[0], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(1, 1, 3, padding="same"), nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), nn.PReLU()]
)
def test_layers_without_a_rule_are_refused(layer: nn.Module) -> None:
    with pytest.raises(SettingError, match="per-sample"):
        per_sample.rule(layer)
