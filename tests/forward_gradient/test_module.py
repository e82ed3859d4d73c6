"""A net of one's own: cut into blocks, given auxiliary nets, and trained by `ForwardGradient`, as the examples do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import resnet18

from forward_gradient.conftest import dense_net, normal
from unlocked.artifact.config import ROOT
from unlocked.errors import SettingError
from unlocked.forward_gradient import ForwardGradient, Method, estimate, heads, split
from unlocked.forward_gradient.memory import peak_bytes


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


def chain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))


def test_the_parts_of_a_chain_compute_what_it_computes() -> None:
    model, inputs = chain(), torch.randn(2, 6)
    blocks, classifier = split(model, at=[2, 4])
    assert len(blocks) == 2
    assert torch.equal(classifier(blocks[1](blocks[0](inputs))), model(inputs))
    assert {id(p) for p in [*blocks.parameters(), *classifier.parameters()]} == {id(p) for p in model.parameters()}


def test_a_module_that_stands_in_a_chain_twice_is_in_both_places() -> None:
    """Cut by position, though the modules have names of their own."""
    act, inputs = nn.ReLU(), normal(3, 6)
    layers = {"one": nn.Linear(6, 5), "a": act, "two": nn.Linear(5, 4), "b": act, "three": nn.Linear(4, 3)}
    model = nn.Sequential(OrderedDict(layers)).double()
    blocks, classifier = split(model, at=[2, 4])
    assert [len(part) for part in (*blocks, classifier)] == [2, 2, 1]
    assert torch.equal(classifier(blocks[1](blocks[0](inputs))), model(inputs))


def test_what_blocks_share_gets_the_gradients_of_all() -> None:
    whole, inputs, labels = module(Method("global", "global"))
    shared = nn.Sequential(nn.Linear(4, 4), nn.Tanh()).to(inputs.dtype)
    net = ForwardGradient([shared, shared], list(whole.auxiliaries)[1:], Method("global", "global"))
    net.backward(inputs, labels)
    (gradient,) = torch.autograd.grad(functional.cross_entropy(net(inputs), labels), [shared[0].weight])
    torch.testing.assert_close(shared[0].weight.grad, gradient)


@pytest.mark.parametrize("method", [Method("global", "local"), Method("global", "frozen"), Method("local", "local")])
@pytest.mark.parametrize("place", ["block", "auxiliary"])
def test_a_part_that_changes_what_others_read_is_refused(place: str, method: Method) -> None:
    net = dense_net(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    parts = {"block": net.blocks, "auxiliary": net.auxiliaries}[place]
    parts[1] = nn.Sequential(nn.ReLU(inplace=True), parts[1])
    with pytest.raises(SettingError, match=f"{place} = 'Sequential': changes its inputs") as raised:
        ForwardGradient(net.blocks, net.auxiliaries, method).backward(net.inputs, net.labels)
    assert "\n" not in str(raised.value)


def test_a_resnet_of_torchvision_is_cut_at_stages_and_between_their_blocks() -> None:
    model = resnet18(num_classes=7).eval()
    blocks, classifier = split(model, at=["layer1", "layer2.1", "layer4", "avgpool"])
    outputs = inputs = torch.randn(2, 3, 64, 64)
    for block in blocks:
        outputs = block(outputs)
    assert torch.equal(classifier(outputs), model(inputs))
    assert [tuple(shape) for shape in heads.shapes(blocks, inputs)] == [(64, 16, 16), (128, 8, 8), (256, 4, 4)]


@pytest.mark.parametrize(
    ("model", "at", "says"),
    [
        (chain(), [], "at least one cut"),
        (chain(), [2, 2], "in the order"),
        (chain(), [0], "none at the start"),
        (chain(), ["layer9"], "must be one of 0, 1, 2"),
        (nn.LSTM(3, 4), [1], "is no nn.Sequential and no torchvision ResNet"),
    ],
)
def test_what_cannot_be_cut_is_refused_in_one_line(model: nn.Module, at: list[int | str], says: str) -> None:
    with pytest.raises(SettingError, match=says):
        split(model, at)


@pytest.mark.parametrize("make", [heads.linear, heads.cnn, heads.mlp])
def test_heads_fit_maps_and_plain_features(make: object) -> None:
    inputs, shapes = torch.randn(4, 6, 9, 9), [(6, 9, 9)]
    [head] = make(shapes, 5)
    assert head(inputs).shape == (4, 5)
    if make is heads.cnn:
        with pytest.raises(SettingError, match=r"shape = \(8,\): must be \(channels, height, width\)"):
            make([(8,)], 5)
    else:
        [head] = make([(8,)], 5)
        assert head(torch.randn(4, 8)).shape == (4, 5)


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("own_model_forward_gradient.py", "random guess, weights"),
        ("forward_mode_memory.py", "forward mode   ratio"),
    ],
)
def test_the_examples_run(script: str, says: str) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "examples" / script)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert says in done.stdout


def test_peak_memory_counts_what_lives_at_once() -> None:
    """Temporaries that are freed are taken off, what was there before is not counted, in place costs nothing."""
    there = torch.zeros(1000)  # 4000 bytes
    assert peak_bytes(lambda: there + 1) == 4000
    assert peak_bytes(lambda: ((there + 1) + 1) + 1) == 8000
    assert peak_bytes(lambda: there.clone().add_(1)) == 4000
    assert peak_bytes(lambda: there.view(10, 100).add_(0)) == 0


def test_peak_memory_of_a_way_back_grows_with_depth() -> None:
    def way_back(depth: int) -> int:
        net = nn.Sequential(*(nn.Sequential(nn.Linear(50, 50), nn.Tanh()) for _ in range(depth)))
        inputs = torch.zeros(10, 50)
        return peak_bytes(lambda: torch.autograd.grad(net(inputs).sum(), list(net.parameters())))

    assert way_back(20) > 1.8 * way_back(10)
