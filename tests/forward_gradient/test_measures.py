"""What is measured of an estimate."""

from __future__ import annotations

import pytest
import torch

from forward_gradient.conftest import SPACES, generator, small_net
from unlocked.forward_gradient import measures, projection, spaces


@pytest.mark.parametrize(("space", "averaged"), SPACES)
@pytest.mark.parametrize("target", ["global", "local"])
@pytest.mark.parametrize("guess", ["random", "local", "ntk"])
def test_measures_are_plain_numbers_for_every_estimated_block(
    space: str, averaged: bool, target: str, guess: str
) -> None:
    """Measuring does not change the estimate."""
    net = small_net()
    plain, measured = (
        net.estimate(target, guess, space, averaged, measure=m, generator=generator()) for m in (False, True)
    )
    if (target, guess) != ("local", "local"):  # where the estimate is exact unless it is measured
        assert all(torch.equal(plain.gradients[name], measured.gradients[name]) for name in plain.gradients)
    assert not plain.measures
    found = measured.measures
    assert all(isinstance(value, float) for value in found.values())
    for metric in ("cosine", "norm_ratio", "target_norm", "guess_norm", "coefficient", "coefficient_q90"):
        assert {block for name, block in found if name == metric} == {0, 1}
    for metric in ("estimate_cosine", "estimate_relative_error"):
        assert {block for name, block in found if name == metric} == {measures.WHOLE, 0, 1}
    assert all(-1.000001 <= value <= 1.000001 for (metric, _), value in found.items() if "cosine" in metric)
    assert (("cosine/body.0.weight", 0) in found) == (space == "weight")


def test_backpropagation_has_no_error_and_full_alignment() -> None:
    found = small_net().estimate("global", "global", measure=True).measures
    for block in (measures.WHOLE, 0, 1):
        assert found["estimate_cosine", block] == pytest.approx(1)
        assert found["estimate_relative_error", block] == pytest.approx(0, abs=1e-9)
        if block != measures.WHOLE:
            assert found["cosine", block] == found["norm_ratio", block] == pytest.approx(1)


def test_frozen_blocks_have_nothing_to_measure() -> None:
    assert not small_net().estimate("global", "frozen", "weight", False, measure=True).measures


def test_zero_vectors_give_a_zero_cosine_and_no_ratio() -> None:
    target, guess = torch.zeros(2, 3), torch.ones(2, 3)
    found = measures.compare(target, guess)
    assert torch.equal(found["cosine"], torch.zeros(2))
    assert found["norm_ratio"].isnan().all()
    alignment = measures.Alignment(spaces.Activity(averaged=False))
    alignment.add("output", target, guess, torch.zeros(2))
    recorded = alignment.measures(0)
    assert ("norm_ratio", 0) not in recorded
    assert recorded["guess_norm", 0] == pytest.approx(3**0.5)


def test_a_very_short_guess_is_shrunk() -> None:
    """To half where its square is `eps`; a guess of zero gives zero."""
    guess = torch.tensor([3e-9, 4e-9], dtype=torch.float64)
    assert projection.project(guess, guess, per_sample=False, eps=25e-18).tolist() == pytest.approx([1.5e-9, 2e-9])
    assert projection.project(guess, 0 * guess, per_sample=False).tolist() == [0, 0]
