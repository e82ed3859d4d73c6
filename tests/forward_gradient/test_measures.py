"""What is measured of an estimate."""

from __future__ import annotations

import pytest
import torch

from forward_gradient.conftest import small_net
from unlocked.forward_gradient import estimate, measures, spaces

SPACES = [("weight", False), ("weight", True), ("activity", False)]


@pytest.mark.parametrize(("space", "averaged"), SPACES)
@pytest.mark.parametrize("target", ["global", "local"])
@pytest.mark.parametrize("guess", ["random", "local", "ntk"])
def test_measures_are_plain_numbers_for_every_estimated_block(
    space: str, averaged: bool, target: str, guess: str
) -> None:
    net = small_net()
    settings = {"target": target, "guess": guess, "space": space, "averaged": averaged}
    found = estimate(*net.everything(), **settings, measure=True).measures
    assert all(isinstance(value, float) for value in found.values())
    for metric in ("cosine", "norm_ratio", "target_norm", "guess_norm", "coefficient", "coefficient_q90"):
        assert {block for name, block in found if name == metric} == {0, 1}
    for metric in ("estimate_cosine", "estimate_relative_error"):
        assert {block for name, block in found if name == metric} == {measures.WHOLE, 0, 1}
    assert all(-1.000001 <= value <= 1.000001 for (metric, _), value in found.items() if "cosine" in metric)
    assert (("cosine/body.0.weight", 0) in found) == (space == "weight")


def test_measuring_does_not_change_the_estimate() -> None:
    net = small_net()
    for space, averaged in SPACES:
        settings = {"target": "local", "guess": "random", "space": space, "averaged": averaged}
        one, other = (
            estimate(*net.everything(), **settings, measure=m, generator=torch.Generator().manual_seed(0))
            for m in (False, True)
        )
        assert all(torch.equal(one.gradients[name], other.gradients[name]) for name in one.gradients)
        assert not one.measures


def test_backpropagation_has_no_error_and_full_alignment() -> None:
    net = small_net()
    found = estimate(*net.everything(), target="global", guess="global", space="activity", measure=True).measures
    for block in (0, 1):
        assert found["cosine", block] == pytest.approx(1)
        assert found["norm_ratio", block] == pytest.approx(1)
    for block in (measures.WHOLE, 0, 1):
        assert found["estimate_cosine", block] == pytest.approx(1)
        assert found["estimate_relative_error", block] == pytest.approx(0, abs=1e-9)


def test_the_error_falls_with_the_number_of_tangents() -> None:
    net = small_net()
    settings = {"target": "global", "guess": "random", "space": "activity", "measure": True}
    errors = {}
    for tangents in (1, 64):
        generator = torch.Generator().manual_seed(0)
        found = [
            estimate(*net.everything(), **settings, generator=generator, tangents=tangents).measures for _ in range(4)
        ]
        errors[tangents] = sum(one["estimate_relative_error", measures.WHOLE] for one in found) / 4
    assert 1 / 16 < errors[64] / errors[1] < 1 / 4  # 1/8 expected


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
