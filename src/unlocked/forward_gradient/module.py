"""`ForwardGradient`: a net in blocks whose `backward` fills `.grad` with an estimate, for any optimiser to use."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from unlocked.forward_gradient import guesses
from unlocked.forward_gradient.estimator import Estimate, check_one_per_block, estimate
from unlocked.forward_gradient.method import Method
from unlocked.forward_gradient.passes import Loss, run


class ForwardGradient(nn.Module):
    """K blocks and K auxiliary nets, the last of which is the head of the whole net (see `estimate`).

        net = ForwardGradient(blocks, auxiliaries, Method("global", "local"))
        optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
        losses = net.backward(images, labels)
        optimiser.step()

    With a target from trained auxiliary nets, those that a guess from untrained ones comes from are copies of the
    auxiliary nets given. Those of a redrawn guess (`ntk`) are drawn anew in every `backward`, from torch's global
    generator, as noise is.
    """

    def __init__(
        self, blocks: Sequence[nn.Module], auxiliaries: Sequence[nn.Module], method: Method, loss: Loss = cross_entropy
    ) -> None:
        super().__init__()
        check_one_per_block("auxiliaries", auxiliaries, blocks)
        self.blocks, self.auxiliaries = nn.ModuleList(blocks), nn.ModuleList(auxiliaries)
        own = copy.deepcopy(self.auxiliaries).requires_grad_(False) if method.has_guess_nets else None
        self.guess_auxiliaries, self.method, self.loss = own, method, loss
        self.last: Estimate | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        """The net's scores (N, ...)."""
        for block in self.blocks:
            inputs = run(block, inputs)
        return self.auxiliaries[-1](inputs)

    def backward(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Set `.grad` to the estimate for a batch (None where nothing is estimated), and give the K blocks' losses.

        The whole `Estimate` is kept as `last`.
        """
        if self.method.of_guess.redrawn:
            guesses.redraw_(self.auxiliaries if self.guess_auxiliaries is None else self.guess_auxiliaries, None)
        self.last = estimate(
            self.blocks, self.auxiliaries, inputs, labels, self.method, loss=self.loss,
            guess_auxiliaries=self.guess_auxiliaries, update_statistics=self.training,
        )  # fmt: skip
        for name, parameter in self.named_parameters():
            parameter.grad = self.last.gradients.get(name)
        return self.last.losses
