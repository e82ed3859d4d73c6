"""What it costs that workers differ, and whether they differ where the loss is curved or where it is flat.

With d_i = x_i - x_mean the mean loss of the workers exceeds the loss of their average by `1/2n sum d_i^T H d_i` to
second order, because the d_i sum to zero: H is the Hessian of the training loss at the average. Its Gauss-Newton part G
leaves out the curvature of the network itself. Equal distances from the average can cost very different losses.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm

from unlocked.gossip.workers import pieces_of

Batch = tuple[Tensor, Tensor]  # images (B, C, H, W) and labels (B,)


class Disagreement:
    """Measures parameter vectors (d,) of `model` on fixed batches.

    BatchNorm takes its statistics from each batch, as in training: so the loss is a function of the parameters alone.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Batch]) -> None:
        self.model, self.batches = copy.deepcopy(model).train(), batches
        for module in self.model.modules():
            if isinstance(module, _BatchNorm):
                module.track_running_stats = False
        self.parameters = dict(self.model.named_parameters())

    def logits(self, images: Tensor) -> Callable[[Tensor], Tensor]:
        """The network's scores (B, classes) as a function of the parameter vector."""

        def function(flat: Tensor) -> Tensor:
            pieces = pieces_of(flat, list(self.parameters.values()))
            return functional_call(self.model, dict(zip(self.parameters, pieces, strict=True)), (images,))

        return function

    def measure(self, mean: Tensor, vectors: Iterable[Tensor]) -> dict[str, float]:
        """Of workers at `vectors`, whose average is `mean`: `worker_train_loss`, their mean loss; `loss_difference`,
        that over the loss of the average; `disagreement_hessian` and `disagreement_gauss_newton`, half of the mean of
        `d^T H d` and of `d^T G d`, which are what the difference is to second order."""
        slopes = [self.slope(mean, batch) for batch in self.batches]
        rows = torch.stack([self._one(mean, vector, slopes) for vector in vectors])
        loss, hessian, gauss_newton = rows.mean(0).tolist()
        names = ("worker_train_loss", "disagreement_hessian", "disagreement_gauss_newton", "loss_difference")
        own = sum(float(value) for _, value, _ in slopes) / len(slopes)
        return dict(zip(names, (loss, hessian, gauss_newton, loss - own), strict=True))

    def slope(self, mean: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """A copy of `mean`, the loss of a batch there, and its gradient, which can be differentiated again."""
        at = mean.detach().clone().requires_grad_()
        loss = cross_entropy(self.logits(batch[0])(at), batch[1])
        return at, loss.detach(), torch.autograd.grad(loss, at, create_graph=True)[0]

    def _one(self, mean: Tensor, vector: Tensor, slopes: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
        """Of one worker: its loss, and half of the two quadratic forms of its distance from the mean; float64 (3,)."""
        total, away = torch.zeros(3, dtype=torch.float64), vector - mean
        for (images, labels), (at, _, gradient) in zip(self.batches, slopes, strict=True):
            logits = self.logits(images)
            with torch.no_grad():
                loss = cross_entropy(logits(vector), labels)
                scores, moved = jvp(logits, (mean,), (away,))
            (product,) = torch.autograd.grad(gradient, at, away, retain_graph=True)  # H d
            total += torch.stack([loss, product @ away / 2, variance(scores, moved) / 2]).double().cpu()
        return total / len(self.batches)


def variance(scores: Tensor, moved: Tensor) -> Tensor:
    """`d^T G d`, the mean over samples of the variance of `moved` = J d under the predicted probabilities."""
    probability = scores.softmax(1)
    return ((probability * moved.square()).sum(1) - (probability * moved).sum(1).square()).mean()
