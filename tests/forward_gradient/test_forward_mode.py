"""Forward mode finds the same estimates as projection, and refuses what it cannot find."""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import jvp, vmap
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from forward_gradient.conftest import SPACES, Net, assert_as_reference, assert_same, generator, small_net
from unlocked.errors import SettingError
from unlocked.forward_gradient import Method, forward_mode
from unlocked.forward_gradient.derivatives import FewPasses

CELLS = list(itertools.product(("global", "local"), ("random", "local", "ntk", "fixed_ntk"), SPACES))


def assert_agree(net: Net, *cell: Any, close: dict[str, float] | None = None, **more: Any) -> None:
    """The same estimate by projection and in forward mode, with the same noise."""
    one, other = (net.estimate(*cell, mode=m, generator=generator(4), **more) for m in ("projection", "forward_mode"))
    assert_same(one.gradients, other.gradients, **(close or {}))
    assert_same(one.coefficients, other.coefficients, **(close or {}))
    torch.testing.assert_close(other.losses, one.losses)
    assert torch.equal(other.correct, one.correct)


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize(("target", "guess", "where"), CELLS)
def test_agrees_with_projection(norm: str, target: str, guess: str, where: tuple[str, bool]) -> None:
    noise = {"tangents": 2, "distribution": "rademacher"} if guess == "random" else {}
    assert_agree(small_net(norm, samples=4), target, guess, *where, **noise)


@pytest.mark.parametrize("mode", ["projection", "forward_mode"])
@pytest.mark.parametrize(("target", "guess"), [("global", "random"), ("global", "local"), ("local", "random")])
def test_one_coefficient_for_all_tensors_of_a_block(
    target: str, guess: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the reference has it, by either mode; forward mode takes one product per block."""
    taken: list[object] = []
    monkeypatch.setattr(forward_mode, "jvp", lambda *a: taken.append(a) or jvp(*a))
    net = small_net()
    found = assert_as_reference(net, Method(target, guess, "weight", per_block=True, mode=mode))
    assert len(taken) == (2 if mode == "forward_mode" else 0)
    for block in range(2):
        values = {float(c) for name, c in found.coefficients.items() if name.startswith(f"blocks.{block}.")}
        assert len(values) == 1
    apart = assert_as_reference(net, Method(target, guess, "weight"))
    assert not torch.equal(*(one.gradients["blocks.0.body.0.weight"] for one in (found, apart)))


@pytest.mark.parametrize("shape", [(4,), (4, 2, 3)])
def test_labels_that_a_loss_leaves_out_are_not_in_its_mean(shape: tuple[int, ...]) -> None:
    """-100, in plain labels and in maps of them."""
    scores = torch.randn(shape[0], 5, *shape[1:], generator=generator(0), dtype=torch.float64)
    labels = torch.randint(5, shape, generator=generator(1))
    labels[1:3] = -100
    each = forward_mode.per_sample_losses(functional.cross_entropy, scores, labels)
    assert each.shape == (4,)
    torch.testing.assert_close(each.sum(), functional.cross_entropy(scores, labels))


@pytest.mark.parametrize(("space", "averaged"), SPACES)
def test_agrees_with_projection_in_single_precision(space: str, averaged: bool) -> None:
    net = small_net("batch", samples=8, dtype=torch.float32)
    assert_agree(net, "global", "local", space, averaged, close={"atol": 1e-5, "rtol": 1e-4})


@pytest.mark.parametrize("space", ["weight", "activity"])
@pytest.mark.parametrize("target", ["global", "local"])
def test_one_pass_is_taken_where_samples_do_not_interact(
    space: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without BatchNorm, or in evaluation mode; with batch statistics every sample has a tangent of its own."""
    apart: list[int] = []
    vmap = forward_mode.vmap
    monkeypatch.setattr(forward_mode, "CHUNK", 4)
    monkeypatch.setattr(
        forward_mode, "vmap", lambda *a, chunk_size: apart.append(chunk_size) or vmap(*a, chunk_size=chunk_size)
    )
    net, other = small_net("batch"), small_net("group")
    net.estimate("global", "local", update_statistics=True)
    for case, training in ((net, True), (net, False), (other, True)):
        case.whole().train(training)
        apart.clear()
        assert_agree(case, target, "random", space, False)
        assert bool(apart) == (case is net and training)


def test_a_backward_hook_is_refused() -> None:
    net = small_net("batch")
    handle = net.blocks[1].register_full_backward_hook(lambda *_: None)
    with pytest.raises(SettingError, match="backward hook"):
        assert_agree(net, "global", "local")
    handle.remove()
    assert_agree(net, "global", "local")


def test_the_target_is_never_formed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every way back in forward mode stays inside one block or one auxiliary net."""
    net = small_net("batch")
    seen: list[bool] = []
    grad = torch.autograd.grad

    def spy(outputs: torch.Tensor, inputs: list, *rest: object, **more: object) -> object:
        first = {id(p) for p in net.blocks[0].parameters()}
        seen.append(outputs.dim() == 0 and any(id(tensor) in first for tensor in inputs))
        return grad(outputs, inputs, *rest, **more)

    monkeypatch.setattr(torch.autograd, "grad", spy)
    net.estimate("global", "random", "weight", True, mode="forward_mode")
    assert seen
    assert not any(seen)


class Calls(TorchDispatchMode):
    """The operations that torch ends up with."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        self.names[function.name()] += 1
        return function(*arguments, **named or {})


SOME = [m for count in (1, 2, 3) for m in itertools.combinations(range(3), count)]


def assert_moves_as_torch_says(function: Callable[..., Tensor], values: list[Tensor], moving: tuple[int, ...]) -> Calls:
    """Along these of its inputs, by one tangent and by two at once; what is called for one."""
    along = [torch.randn(2, *values[k].shape, generator=generator(k), dtype=torch.float64) for k in moving]

    def moved(*inputs: Tensor) -> Tensor:
        return function(*(dict(zip(moving, inputs, strict=True)).get(k, value) for k, value in enumerate(values)))

    def slope(*directions: Tensor) -> tuple[Tensor, Tensor]:
        return jvp(moved, tuple(values[k] for k in moving), directions)

    with torch.no_grad():
        wanted = vmap(slope)(*along)
        with Calls() as calls, FewPasses():
            torch.testing.assert_close(slope(*(one[0] for one in along)), tuple(one[0] for one in wanted))
        with FewPasses():
            torch.testing.assert_close(vmap(slope)(*along), wanted)
    return calls


@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 5), (4, 3, 5, 2), (4, 3, 2, 2, 2)])
@pytest.mark.parametrize("moving", SOME)
def test_batch_norm_moves_as_torch_says(shape: tuple[int, ...], moving: tuple[int, ...]) -> None:
    """Along inputs, weight and bias; the first by one kernel."""
    values = [torch.randn(one, generator=generator(0), dtype=torch.float64) for one in (shape, 3, 3)]

    def normalised(inputs: Tensor, *affine: Tensor) -> Tensor:
        return functional.batch_norm(inputs, None, None, *affine, training=True, eps=1e-3)

    calls = assert_moves_as_torch_says(normalised, values, moving)
    assert calls.names["aten::native_batch_norm_backward"] == (0 in moving)


@pytest.mark.parametrize("sizes", [(5,), (5, 4), (4, 3, 3)])
@pytest.mark.parametrize("moving", SOME)
@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1, "groups": 2}, {"padding": "same", "dilation": 2}])
def test_a_convolution_moves_as_torch_says(
    sizes: tuple[int, ...], moving: tuple[int, ...], options: dict[str, Any]
) -> None:
    """Along inputs, kernel and bias; nothing is convolved with a tangent that is zero."""
    name, kernel = f"conv{len(sizes)}d", [2] * len(sizes)
    shapes = ((3, 4, *sizes), (6, 4 // options.get("groups", 1), *kernel), (6,))
    values = [torch.randn(one, generator=generator(0), dtype=torch.float64) for one in shapes]

    def convolved(*inputs: Tensor) -> Tensor:
        return getattr(functional, name)(*inputs, **options)

    calls = assert_moves_as_torch_says(convolved, values, moving)
    assert calls.names["aten::convolution"] == 1 + len({*moving} - {2})


def test_other_batch_norms_are_torch_s_own() -> None:
    """Without weights it is the same too; by running statistics, or with some to update, torch has it."""
    images = torch.randn(4, 3, 2, 2, generator=generator(0), dtype=torch.float64)
    for layer in (
        nn.BatchNorm2d(3, affine=False, track_running_stats=False),
        nn.BatchNorm2d(3),
        nn.BatchNorm2d(3).eval(),
    ):
        own, other = copy.deepcopy(layer.double()), copy.deepcopy(layer.double())
        with FewPasses():
            found = own(images)
        torch.testing.assert_close(found, other(images))
        torch.testing.assert_close(own.state_dict(), other.state_dict())
