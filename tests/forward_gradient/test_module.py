"""`ForwardGradient` as anybody would use it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from forward_gradient.conftest import dense_net, normal
from unlocked.errors import SettingError
from unlocked.forward_gradient import ForwardGradient, Method, estimate


def module(method: Method, **options: object) -> tuple[ForwardGradient, Tensor, Tensor]:
    net = dense_net(nn.Linear(4, 4), nn.Sequential(nn.Tanh(), nn.Linear(4, 4)), nn.Tanh(), samples=32)
    return ForwardGradient(net.blocks, net.auxiliaries, method, **options), net.inputs, net.labels


@pytest.mark.parametrize("loss", [functional.cross_entropy, functional.mse_loss])
def test_backward_fills_the_gradients_of_what_is_estimated(loss: object) -> None:
    net, inputs, labels = module(Method("global", "fixed_ntk", "weight"), loss=loss)
    labels = labels if loss is functional.cross_entropy else normal(32, 3, seed=1)
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)  # of a step before
    losses = net.backward(inputs, labels)
    expected = estimate(net.blocks, net.auxiliaries, inputs, labels, net.method, loss=loss)
    for name, parameter in net.named_parameters():
        assert (parameter.grad is None) == (name not in expected.gradients)
        assert parameter.grad is None or torch.equal(parameter.grad, expected.gradients[name])
    assert torch.equal(losses, expected.losses)
    torch.testing.assert_close(loss(net(inputs), labels), losses[-1])


@pytest.mark.parametrize(
    "method", [Method("global", "global"), Method("global", "local"), Method("local", "ntk", "weight")]
)
def test_it_learns(method: Method) -> None:
    net, inputs, labels = module(method)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.3)
    losses = []
    for _ in range(30):
        losses.append(net.backward(inputs, labels)[-1])
        optimiser.step()
    assert losses[-1] < losses[0]


def test_nets_that_a_guess_comes_from() -> None:
    """Copies where the auxiliary nets are trained, drawn anew where the guess says so."""
    assert module(Method("global", "ntk"))[0].guess_auxiliaries is None
    fixed, inputs, labels = module(Method("local", "fixed_ntk"))
    assert not any(p.requires_grad for p in fixed.guess_auxiliaries.parameters())
    redrawn = module(Method("local", "ntk"))[0]
    for net in (fixed, redrawn):
        before = net.guess_auxiliaries[0].weight.clone()
        net.backward(inputs, labels)
        assert torch.equal(before, net.guess_auxiliaries[0].weight) == (net is fixed)


def test_statistics_follow_the_mode() -> None:
    net = dense_net(nn.BatchNorm1d(4), nn.Linear(4, 4), samples=8)
    whole = ForwardGradient(net.blocks, net.auxiliaries, Method("global", "local"))
    for training in (False, True):
        whole.train(training).backward(net.inputs, net.labels)
        assert whole.blocks[0].num_batches_tracked == training


def test_a_block_that_gives_no_tensor_is_refused_in_one_line() -> None:
    net = dense_net(nn.LSTM(4, 4, batch_first=True), nn.Linear(4, 4))
    whole = ForwardGradient(net.blocks, net.auxiliaries, Method("global", "local"))
    for use in (lambda: whole.backward(net.inputs, net.labels), lambda: whole(net.inputs)):
        with pytest.raises(SettingError, match="must give one tensor, so wrap it") as raised:
            use()
        assert "\n" not in str(raised.value)
    with pytest.raises(SettingError, match="one per block"):
        ForwardGradient(net.blocks, net.auxiliaries[:1], Method("global", "local"))
