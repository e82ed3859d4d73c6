"""The event-by-event version: golden trajectories, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unlocked import gossip
from unlocked.gossip.momentum import Constants, communicate_, descend_, mix_
from unlocked.gossip.reference import replay

DYNAMICS = {"exact": "exact", "authors_code": "released", "baseline": "exact"}
KINDS = {"grad": "gradient", "com": "communication"}


@pytest.mark.parametrize("mode", sorted(DYNAMICS))
def test_replay_is_golden(golden: dict[str, Any], mode: str) -> None:
    (case,) = (c for c in golden["trajectories"]["cases"] if c["mode"] == mode)
    events = [(KINDS[kind], *rest) for kind, *rest in case["events"]]
    constants = Constants.baseline() if mode == "baseline" else Constants(case["eta"], 0.5, case["beta_tilde"])
    start = np.array(case["x0"])
    x, x_tilde = gossip.replay(events, start, constants, case["lr"], DYNAMICS[mode])
    np.testing.assert_allclose(x.numpy(), case["x_final"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(x_tilde.numpy(), case["x_tilde_final"], rtol=0, atol=1e-9)
    np.testing.assert_array_equal(start, case["x0"])


@given(seed=st.integers(0, 1000), dynamics=st.sampled_from(["exact", "released"]), eta=st.sampled_from([0.0, 0.4]))
def test_the_update_in_place_is_replay(seed: int, dynamics: str, eta: float) -> None:
    """The functions of `momentum`, called event by event, do the same; for the baseline too."""
    draw, constants, lr = np.random.default_rng(seed), Constants(eta, 0.4, 1.3), 0.1
    start = torch.from_numpy(draw.normal(size=(4, 3)))
    x, x_tilde, last, t, events = start.clone(), start.clone(), [0.0] * 4, 0.0, []
    for _ in range(30):
        t += float(draw.exponential())
        i, j = map(int, draw.choice(4, 2, replace=False))
        if draw.random() < 0.5:
            gradient = torch.from_numpy(draw.normal(size=3))
            events.append(("gradient", t, i, gradient))
            mix_(x[i], x_tilde[i], eta, t - last[i])
            descend_(x[i], x_tilde[i], gradient, constants, lr)
        else:
            events.append(("communication", t, i, j))
            communicate_(*((x[k], x_tilde[k], t - last[k]) for k in (i, j)), constants, dynamics)
            last[j] = t
        last[i] = t
    for mine, reference in zip((x, x_tilde), replay(events, start, constants, lr, dynamics), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("events", "word"),
    [
        ([("grad", 0.1, 0, [1.0])], "'grad'"),
        ([("gradient", 1.0, 0, [1.0]), ("gradient", 0.5, 0, [1.0])], "elapsed"),
    ],
)
def test_replay_refuses(events: list[Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        replay(events, [[0.0], [0.0]], Constants(0.5, 0.5, 1.0), 0.1)
