"""What is measured of an estimate: how target and guess lie to each other, and how far the estimate is from the truth.

Everything follows from inner products, which a space finds without forming its vectors.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from unlocked.forward_gradient.spaces import Space, Vector

Measures = dict[tuple[str, int], float]
WHOLE = -1  # the index of all estimated blocks taken together
QUANTILES = (0.1, 0.5, 0.9)


def compare(target: Tensor, guess: Tensor) -> dict[str, Tensor]:
    """Measures of two tensors of one shape (N, ...), row by row: see `from_products`."""
    target, guess = target.flatten(1), guess.flatten(1)
    squares = [(one * one).sum(1) for one in (target, guess, target - guess)]
    return from_products((target * guess).sum(1), *squares)


def from_products(product: Tensor, target: Tensor, guess: Tensor, difference: Tensor) -> dict[str, Tensor]:
    """Measures of two vectors T and G from <T, G>, ‖T‖², ‖G‖² and ‖T - G‖², each (N,): one row each.

    A zero row has cosine 0 to everything. `norm_ratio` and `relative_distance` are in norms of the target, and not a
    number where it is zero.
    """
    target_norm, guess_norm, distance = target.sqrt(), guess.sqrt(), difference.sqrt()
    by_target = torch.where(target_norm > 0, target_norm, torch.nan)
    target_or_one, guess_or_one = (torch.where(norm > 0, norm, 1) for norm in (target_norm, guess_norm))
    return {
        "scalar_product": product,
        "cosine": product / target_or_one / guess_or_one,
        "distance": distance,
        "relative_distance": distance / by_target,
        "norm_ratio": guess_norm / by_target,
        "target_norm": target_norm,
        "guess_norm": guess_norm,
    }


class Alignment:
    """Target against guess in one block, gathered place by place.

    Metrics, each a mean over rows, of which there is one per coefficient: `coefficient` and those of `from_products`,
    over all places joined; where there are several places, `cosine`, `norm_ratio` and `coefficient` of each as
    `metric/place`. Quantiles over rows and places: `coefficient_q10`, `norm_ratio_q50` and so on. Per sample,
    `summed_…` compares the sums over samples.
    """

    def __init__(self, space: Space) -> None:
        self.space = space
        self.rows: dict[str, Tensor] = {}
        self.sums: dict[str, Tensor] = {}
        self.coefficients: dict[str, Tensor] = {}

    def add(self, name: str, target: Vector, guess: Vector, coefficient: Tensor) -> None:
        """Take in one place's target and guess, with the coefficient that they gave."""
        product, square = self.space.inner(guess, [target, guess])
        [length] = self.space.inner(target, [target])
        self.rows[name] = _products(product, length, square)
        self.coefficients[name] = coefficient
        if self.space.per_sample:
            left, right = (self.space.summed(one, torch.ones_like(coefficient)) for one in (target, guess))
            self.sums[name] = _products((left * right).sum(), (left * left).sum(), (right * right).sum())

    def measures(self, block: int) -> Measures:
        """All metrics of the block."""
        each = {name: from_products(*products) for name, products in self.rows.items()}
        found = {metric: values.nanmean() for metric, values in from_products(*sum(self.rows.values())).items()}
        for name, compared in each.items() if len(each) > 1 else ():
            found |= {f"{metric}/{name}": compared[metric].nanmean() for metric in ("cosine", "norm_ratio")}
            found[f"coefficient/{name}"] = self.coefficients[name].mean()
        if self.sums:
            summed = from_products(*sum(self.sums.values()))
            found |= {f"summed_{metric}": values.squeeze() for metric, values in summed.items()}
        every = torch.cat([value.flatten() for value in self.coefficients.values()])
        found["coefficient"] = every.mean()
        ratios = torch.cat([compared["norm_ratio"] for compared in each.values()])
        for metric, values in (("coefficient", every), ("norm_ratio", ratios)):
            found |= {f"{metric}_q{round(100 * q)}": values.nanquantile(q) for q in QUANTILES}
        return _floats(found, block)


def error(block: int, estimate: Mapping[str, Tensor], gradient: Mapping[str, Tensor]) -> Measures:
    """The estimate of one block's (or, with `WHOLE`, several blocks') parameter gradients against the true ones.

    Metrics over all parameters joined: `estimate_cosine`, `estimate_relative_error` (‖estimate - gradient‖ over
    ‖gradient‖), `estimate_norm_ratio`; the cosine also per parameter, as `estimate_cosine/parameter`.
    """
    if not gradient:
        return {}
    joined = [torch.cat([side[name].flatten() for name in gradient]).unsqueeze(0) for side in (gradient, estimate)]
    compared = compare(*joined)
    found = {
        "estimate_cosine": compared["cosine"],
        "estimate_relative_error": compared["relative_distance"],
        "estimate_norm_ratio": compared["norm_ratio"],
    }
    for name in gradient if block != WHOLE else ():
        one = compare(gradient[name].reshape(1, -1), estimate[name].reshape(1, -1))
        found[f"estimate_cosine/{name}"] = one["cosine"]
    return _floats(found, block)


def _products(product: Tensor, target: Tensor, guess: Tensor) -> Tensor:
    """As `from_products` takes them, (4, N). They are sums of the same kind, so for G = T the difference is 0."""
    difference = (target - 2 * product + guess).clamp_min(0)
    return torch.stack([values.reshape(-1) for values in (product, target, guess, difference)])


def _floats(found: Mapping[str, Tensor], block: int) -> Measures:
    """As floats, without those that are not finite: a ratio to a zero norm is no number to record."""
    values = torch.stack([value.reshape(()) for value in found.values()]).tolist()
    return {(name, block): value for name, value in zip(found, values, strict=True) if abs(value) < float("inf")}
