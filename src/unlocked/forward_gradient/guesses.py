"""Guesses: the direction along which the target is measured.

Stands inside `train` on the road configs -> plan -> train -> record -> item, under `estimator`.

`random`: fresh noise in every step (Baydin et al. 2022 in the weights, Ren et al. 2022 in the activities). `local`: the
gradient of the block's own auxiliary loss. `ntk`: the same with auxiliary nets drawn anew every step, `fixed_ntk`: with
nets that stay as they were drawn; neither is trained. `global`: the target of that name itself, which makes the cell
with the global target backpropagation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from unlocked.errors import choose
from unlocked.vision import auxiliary

Draw = Callable[[Sequence[int], torch.dtype, torch.device], Tensor]

_FROM_AUXILIARIES = ("local", "ntk", "fixed_ntk")


def names() -> tuple[str, ...]:
    """The guesses that `estimate` knows."""
    return ("random", *_FROM_AUXILIARIES, "global")


def distributions() -> tuple[str, ...]:
    """The distributions of a random guess; both have zero mean and unit covariance."""
    return ("gaussian", "rademacher")


def from_auxiliaries(name: str) -> bool:
    """Whether guess `name` is the gradient of an auxiliary net's loss."""
    return name in _FROM_AUXILIARIES


def normalised(name: str) -> bool:
    """Whether guess `name` is divided by its squared norm: yes for all but noise, which is unbiased without."""
    return name != "random"


def noise(distribution: str = "gaussian", generator: torch.Generator | None = None) -> Draw:
    """A function that draws one tensor of `distribution` from `generator` (None: torch's global one)."""
    if choose("distribution", distribution, distributions()) == "gaussian":
        return lambda shape, dtype, device: torch.randn(*shape, generator=generator, dtype=dtype, device=device)

    def signs(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.randint(0, 2, tuple(shape), generator=generator, dtype=dtype, device=device).mul_(2).sub_(1)

    return signs


def redraw_(auxiliaries: Sequence[nn.Module], seed: int | None, *names: str | int) -> None:
    """Draw every auxiliary net but the last (the classifier) anew, in place: what the `ntk` guess asks for each step.

    seed, names: e.g. the run's seed and the step; torch's global generators stay as they were. None draws from them.
    """
    for index, module in enumerate(auxiliaries[:-1]):
        auxiliary.redraw_(module, seed, "redraw", index, *names)
