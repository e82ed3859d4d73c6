"""The estimator's algebra: how far the target points along the guess, and that much of the guess."""

from __future__ import annotations

from torch import Tensor

EPSILON = 1e-16


def project(target: Tensor, guess: Tensor, *, per_sample: bool, normalise: bool = True, eps: float = EPSILON) -> Tensor:
    """`c G` with `c = <T, G> / (‖G‖² + eps)`, or `c = <T, G>` without `normalise`.

    target, guess: the same shape. per_sample: one c for every entry of the first dimension, else one for the whole
    tensor. Normalised, it is the projection of the target on the guess (a zero guess gives zero, and a guess with
    ‖G‖² near `eps` is shrunk); otherwise it is unbiased for a guess of zero mean and unit covariance. Same shape back.
    """
    square = inner(guess, guess, per_sample) if normalise else None
    return scale(coefficient(inner(target, guess, per_sample), square, eps), guess)


def coefficient(product: Tensor, square: Tensor | None = None, eps: float = EPSILON) -> Tensor:
    """The c of `project` from `<T, G>` and `‖G‖²`, both (N,) or (); without a square it is not normalised."""
    return product if square is None else product / (square + eps)


def inner(left: Tensor, right: Tensor, per_sample: bool) -> Tensor:
    """The inner product of two tensors of one shape: (N,), one per entry of the first dimension, or ()."""
    product = left * right
    if not per_sample:
        return product.sum()
    return product.sum(tuple(range(1, product.dim()))) if product.dim() > 1 else product


def scale(coefficient: Tensor, guess: Tensor) -> Tensor:
    """`c G`, where `c` is () or has one entry per entry of the first dimension of `G`."""
    return coefficient.reshape(*coefficient.shape, *(1 for _ in guess.shape[coefficient.dim() :])) * guess
