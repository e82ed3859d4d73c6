"""What is measured of an estimate: how target and guess lie to each other, and how far the estimate is from the truth.

Stands inside `train` on the road configs -> plan -> train -> record -> item: the trainer writes these numbers into the
run's history, one row per metric and block, and the alignment, norm and error figures draw them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Measures = dict[tuple[str, int], float]
WHOLE = -1  # the index of all estimated blocks taken together

_QUANTILES = (0.1, 0.5, 0.9)


def compare(target: Tensor, guess: Tensor) -> dict[str, Tensor]:
    """Measures of two tensors of one shape (N, ...), row by row: each (N,).

    A zero row has cosine 0 to everything. `norm_ratio` is the guess's norm over the target's, and `relative_distance`
    that of their difference over the target's; over a zero target both are not a number.
    """
    target, guess = target.flatten(1), guess.flatten(1)
    target_norm, guess_norm = target.norm(dim=1), guess.norm(dim=1)
    distance, by_target = (target - guess).norm(dim=1), torch.where(target_norm > 0, target_norm, torch.nan)
    return {
        "scalar_product": (target * guess).sum(1),
        "cosine": (_unit(target, target_norm) * _unit(guess, guess_norm)).sum(1),
        "distance": distance,
        "relative_distance": distance / by_target,
        "norm_ratio": guess_norm / by_target,
        "target_norm": target_norm,
        "guess_norm": guess_norm,
    }


def alignment(
    block: int, target: Mapping[str, Tensor], guess: Mapping[str, Tensor], coefficients: Mapping[str, Tensor]
) -> Measures:
    """Target against guess in one block.

    target, guess: tensors by name, (N, ...) where coefficients are (N,), one per sample, else one row in all.
    Metrics, each a mean over rows: `coefficient` and those of `compare`, over all tensors joined; where there are
    several tensors, `cosine`, `norm_ratio` and `coefficient` of each as `metric/tensor`. Quantiles over rows and
    tensors: `coefficient_q10`, `norm_ratio_q50` and so on. Per sample, `summed_…` compares the sums over samples.
    """
    rows = {name: _rows(target[name], guess[name], coefficients[name]) for name in target}
    joined = tuple(torch.cat([pair[side] for pair in rows.values()], dim=1) for side in (0, 1))
    found = {metric: values.nanmean() for metric, values in compare(*joined).items()}
    for name, pair in rows.items() if len(rows) > 1 else ():
        compared = compare(*pair)
        found |= {f"{metric}/{name}": compared[metric].nanmean() for metric in ("cosine", "norm_ratio")}
        found[f"coefficient/{name}"] = coefficients[name].mean()
    if len(joined[0]) > 1:
        summed = compare(*(side.sum(0, keepdim=True) for side in joined))
        found |= {f"summed_{metric}": values.squeeze() for metric, values in summed.items()}
    every = torch.cat([value.flatten() for value in coefficients.values()])
    ratios = torch.cat([compare(*pair)["norm_ratio"] for pair in rows.values()])
    found |= {"coefficient": every.mean(), **_spread("coefficient", every), **_spread("norm_ratio", ratios)}
    return {(metric, block): value for metric, value in _floats(found).items()}


def error(block: int, estimate: Mapping[str, Tensor], gradient: Mapping[str, Tensor]) -> Measures:
    """The estimate of one block's (or, with `WHOLE`, several blocks') parameter gradients against the true ones.

    Metrics over all parameters joined: `estimate_cosine`, `estimate_relative_error` (‖estimate - gradient‖ over
    ‖gradient‖), `estimate_norm_ratio`; the cosine also per parameter, as `estimate_cosine/parameter`.
    """
    names = list(gradient)
    if not names:
        return {}
    joined = [torch.cat([side[name].flatten() for name in names]).unsqueeze(0) for side in (gradient, estimate)]
    compared = compare(*joined)
    found = {
        "estimate_cosine": compared["cosine"],
        "estimate_relative_error": compared["relative_distance"],
        "estimate_norm_ratio": compared["norm_ratio"],
    }
    if block != WHOLE:
        for name in names:
            one = compare(gradient[name].reshape(1, -1), estimate[name].reshape(1, -1))
            found[f"estimate_cosine/{name}"] = one["cosine"]
    return {(metric, block): value for metric, value in _floats(found).items()}


def _unit(rows: Tensor, norms: Tensor) -> Tensor:
    return rows / torch.where(norms > 0, norms, 1).unsqueeze(1)


def _rows(target: Tensor, guess: Tensor, coefficient: Tensor) -> tuple[Tensor, Tensor]:
    """Both tensors as (rows, values): one row per coefficient."""
    rows = max(1, coefficient.numel())
    return target.reshape(rows, -1), guess.reshape(rows, -1)


def _spread(metric: str, values: Tensor) -> dict[str, Tensor]:
    return {f"{metric}_q{round(100 * q)}": values.nanquantile(q) for q in _QUANTILES}


def _floats(found: Mapping[str, Tensor]) -> dict[str, float]:
    """As floats, without those that are not finite: a ratio to a zero norm is no number to record."""
    names = list(found)
    values = torch.stack([found[name].reshape(()) for name in names]).tolist()
    return {name: value for name, value in zip(names, values, strict=True) if abs(value) < float("inf")}
