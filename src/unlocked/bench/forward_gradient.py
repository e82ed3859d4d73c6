"""`unlocked bench forward_gradient`: one gradient estimate against one backpropagation, on one thread.

Times are CPU times, in turns. Memory is the peak of the tensors that a step makes beyond what was there before
(`forward_gradient.memory`): the same number on every run.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from unlocked.bench import Options, race, ratio
from unlocked.forward_gradient import estimate, studies
from unlocked.forward_gradient.memory import peak_bytes
from unlocked.forward_gradient.network import Net
from unlocked.vision import auxiliary, blocks

BATCH, SIZE = 128, 32
SPACES: dict[str, dict[str, Any]] = {
    "activity": {"space": "activity"},
    "averaged": {"space": "weight", "averaged": True},
    "per_sample": {"space": "weight", "averaged": False},
}

MEANINGS = {
    "cpu_activity": "CPU time of a step with local guesses in the activities / of a backpropagation",
    "cpu_averaged": "the same, in the weights with a coefficient per tensor",
    "cpu_per_sample": "the same, in the weights with a coefficient per sample",
    "memory_activity": "peak memory of that step / of a backpropagation",
    "memory_averaged": "the same, in the weights with a coefficient per tensor",
    "memory_per_sample": "the same, in the weights with a coefficient per sample",
    "forward_mode_memory_block0": "peak memory of a Jacobian-vector product from the first block / of backpropagation",
    "seconds_backpropagation": "CPU seconds of a backpropagation",
    "megabytes_backpropagation": "its peak memory in MB",
}


def measure(options: Options) -> dict[str, float]:
    """Three spaces with a global target and a local guess: 8 blocks, cnn auxiliary nets, batch 128, 32×32 pixels."""
    torch.set_num_threads(1)
    net, images, labels = fresh(options.width)
    steps = {"backpropagation": partial(backpropagation, net, images, labels)}
    steps |= {name: partial(step, net, images, labels, guess="local", **where) for name, where in SPACES.items()}
    times = race({name: _turn(compute) for name, compute in steps.items()}, options.turns)
    peaks = {name: float(peak_bytes(compute)) for name, compute in steps.items()}
    found = {f"cpu_{name}": ratio(times[name], times["backpropagation"]) for name in SPACES}
    found |= {f"memory_{name}": peaks[name] / peaks["backpropagation"] for name in SPACES}
    from_images = (net, 0, images, labels, torch.Generator().manual_seed(0))
    jvp, whole = (peak_bytes(studies.COSTS[kind](*from_images)) for kind in ("jvp", "backpropagation"))
    found["forward_mode_memory_block0"] = jvp / whole
    found["seconds_backpropagation"] = median(times["backpropagation"])
    found["megabytes_backpropagation"] = peaks["backpropagation"] / 2**20
    return found


def fresh(width: float, batch: int = BATCH, size: int = SIZE) -> tuple[Net, Tensor, Tensor]:
    """A ResNet-18 in 8 blocks with cnn auxiliary nets, and a batch of noise with labels."""
    body = blocks.build("resnet18_8", size=size, width=width, seed=0)
    heads = auxiliary.build_all("cnn", body, classes=10, seed=0)
    images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
    return Net(body.modules, heads, None), images, torch.arange(batch) % 10


def backpropagation(net: Net, images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """The peer: forward and backward of the net alone, as anyone would write it."""
    features = images
    for block in net.blocks:
        features = block(features)
    loss = cross_entropy(net.auxiliaries[-1](features), labels)
    return torch.autograd.grad(loss, [*net.blocks.parameters(), *net.auxiliaries[-1].parameters()])


def step(net: Net, images: Tensor, labels: Tensor, **settings: Any) -> object:
    """One gradient estimate as in training, with a global target."""
    generator = torch.Generator().manual_seed(0)
    both = net.blocks, net.auxiliaries
    return estimate(*both, images, labels, target="global", generator=generator, update_statistics=True, **settings)


def _turn(compute: Callable[[], object]) -> Callable[[int], None]:
    return lambda turn: compute() and None
