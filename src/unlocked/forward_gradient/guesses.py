"""Guesses: the direction along which the target is measured. A new one is a `Guess` that is registered, no more.

    register(Guess("sign_local", "sign of local", "#E69F00", "head", lambda gradient: gradient.sign(),
                   trains_heads=True))

`random`: fresh noise in every step (Baydin et al. 2022 in the weights, Ren et al. 2022 in the activities). `local`: the
gradient of the block's own auxiliary loss. `ntk`: the same with auxiliary nets drawn anew every step, `fixed_ntk`: with
nets that stay as they were drawn. `global`: the global target itself, which makes that cell backpropagation. `frozen`:
none; blocks stay as they were drawn, and the last one and the classifier alone are trained: the control.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unlocked.errors import choose
from unlocked.forward_gradient.targets import shown
from unlocked.registry import check

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Draw = Callable[[Sequence[int], Any, Any], Any]  # (shape, dtype, device) to a tensor
SOURCES = ("noise", "head", "target", "nothing")
DISTRIBUTIONS = ("gaussian", "rademacher")  # of noise: zero mean and unit covariance


def same(given: Tensor) -> Tensor:
    """What is given, as it is."""
    return given


@dataclass(frozen=True)
class Guess:
    """A guess, with all that training, tables and figures need of it.

    source: what `function` makes the guess of: `noise` (drawn in the space), `head` (the gradient of the auxiliary loss
    at the block's output (N, ...)), `target` (the target there), `nothing` (there is none: blocks are not trained).
    """

    name: str
    label: str  # in tables and legends
    colour: str  # #RRGGBB in figures
    source: str
    function: Callable[[Tensor], Tensor] = same
    trains_heads: bool = False  # auxiliary nets learn from their own loss
    redrawn: bool = False  # they are drawn anew every step
    normalised: bool = True  # the estimate is divided by the guess's squared norm; noise is unbiased without
    only_with: str | None = None  # the one target with which the guess stands


GUESSES: dict[str, Guess] = {}  # in the order in which they were registered


def register(guess: Guess) -> None:
    """Add a guess; `SettingError` if it cannot stand."""
    source, has_nets = guess.source, guess.trains_heads or guess.redrawn
    check(
        "guess", guess.name, GUESSES, *shown(guess),
        (source not in SOURCES, f"needs as source one of {', '.join(SOURCES)}, not {source!r}"),
        (source != "head" and has_nets, f"comes from {source}: it has no auxiliary nets to train or redraw"),
        (guess.trains_heads and guess.redrawn, "cannot both train its auxiliary nets and redraw them"),
    )  # fmt: skip
    GUESSES[guess.name] = guess


names, get = GUESSES.keys, GUESSES.__getitem__

register(Guess("random", "random", "#009E73", "noise", normalised=False))
register(Guess("local", "local", "#D55E00", "head", trains_heads=True))
register(Guess("ntk", "NTK", "#0072B2", "head", redrawn=True))
register(Guess("fixed_ntk", "fixed NTK", "#56B4E9", "head"))
register(Guess("global", "itself", "#000000", "target", only_with="global"))
register(Guess("frozen", "frozen blocks", "#999999", "nothing", only_with="global"))


def noise(distribution: str = "gaussian", generator: torch.Generator | None = None) -> Draw:
    """A function that draws one tensor of `distribution` from `generator` (None: torch's global one)."""
    import torch

    if choose("distribution", distribution, DISTRIBUTIONS) == "gaussian":
        return lambda shape, dtype, device: torch.randn(*shape, generator=generator, dtype=dtype, device=device)

    def signs(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.randint(0, 2, tuple(shape), generator=generator, dtype=dtype, device=device).mul_(2).sub_(1)

    return signs


def redraw_(auxiliaries: Sequence[nn.Module], seed: int | None, *names: str | int, init: str = "default") -> None:
    """Draw every auxiliary net but the last (the classifier) anew, in place, as redrawn guesses ask for every step.

    seed, names: e.g. the run's seed and the step; torch's global generators stay as they were. None draws from them.
    init: how, see `models.draw_`.
    """
    from unlocked.vision.models import draw_, fresh_weights

    for index, module in enumerate(list(auxiliaries)[:-1]):
        with fresh_weights(seed, "redraw", index, *names, parameters=module.parameters()):
            draw_(module, init)
