"""A net of one's own: `split` cuts it into blocks, and `ForwardGradient` fills `.grad` with an estimate for it.

Any optimiser does the rest. `heads` has auxiliary nets for such blocks.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from unlocked.errors import SettingError, choose
from unlocked.forward_gradient import guesses
from unlocked.forward_gradient.estimator import Estimate, check_one_per_block, estimate
from unlocked.forward_gradient.method import Method
from unlocked.forward_gradient.passes import Loss, run

RESNET = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool", "fc")


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
        self.zero_grad(set_to_none=True)
        for name, parameter in self.named_parameters(remove_duplicate=False):
            if (own := self.last.gradients.get(name)) is not None:  # shared by blocks: each adds its own
                parameter.grad = own if parameter.grad is None else parameter.grad + own
        return self.last.losses


def split(model: nn.Module, at: Sequence[int | str]) -> tuple[nn.ModuleList, nn.Module]:
    """Cut a chain of modules before each of `at`: K blocks, and the classifier, which is the last of the K + 1 parts.

    model: an `nn.Sequential`, or a ResNet with torchvision's names (its stages are units that can be cut, too:
    `layer2`, `layer3.1`). at: names in their order, or positions in the chain. The parts share the model's
    parameters, and one after the other they compute what it computes. `SettingError` for anything else.
    """
    units = _units(model)
    names = list(units)
    starts = [0]
    for place in at:
        if isinstance(place, int) and 0 <= place < len(names):
            starts.append(place)
            continue
        name = choose("at", str(place), [*names, *{name.partition(".")[0] for name in names}])
        starts.append(next(k for k, unit in enumerate(names) if unit == name or unit.startswith(f"{name}.")))
    if len(starts) < 2 or any(a >= b for a, b in pairwise(starts)):
        raise SettingError("at", list(at), "must name at least one cut, in the order of the modules, none at the start")
    parts = [names[a:b] for a, b in pairwise([*starts, len(names)])]
    *blocks, classifier = (nn.Sequential(OrderedDict((n.replace(".", "_"), units[n]) for n in own)) for own in parts)
    return nn.ModuleList(blocks), classifier


def _units(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of the chain, by name; one that stands in it twice is there twice."""
    if isinstance(model, nn.Sequential):
        return {name: child for name, child in model._modules.items() if child is not None}
    if tuple(name for name, _ in model.named_children()) != RESNET:
        right = "is no nn.Sequential and no torchvision ResNet: write its blocks as a Sequential"
        raise SettingError("model", type(model).__name__, right)
    units: dict[str, nn.Module] = {}
    for name, child in model.named_children():
        stages = name.startswith("layer")
        units |= {f"{name}.{k}": one for k, one in child.named_children()} if stages else {name: child}
    return {**units, "avgpool": nn.Sequential(units["avgpool"], nn.Flatten()), "fc": units["fc"]}
