"""`unlocked bench forward_gradient`: one gradient estimate against one backpropagation, on one thread, in CPU time.

Memory is the peak of the tensors that a step makes beyond what was there before (`forward_gradient.memory`): the same
number on every run.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from unlocked.bench import Options, race, ratio
from unlocked.forward_gradient.estimator import Estimate, estimate
from unlocked.forward_gradient.memory import peak_bytes
from unlocked.forward_gradient.method import Method
from unlocked.papers.forward_gradient.network import Net
from unlocked.papers.forward_gradient.studies import computations
from unlocked.vision import auxiliary, blocks

PEER = "backpropagation"
SPACES = {
    "activity": Method("global", "local", "activity"),
    "averaged": Method("global", "local", "weight", averaged=True),
    "per_sample": Method("global", "local", "weight", averaged=False),
}
FORWARD_MODE = {  # one Jacobian-vector product per block
    "forward_mode_activity": Method("global", "local", "activity", averaged=True, mode="forward_mode"),
    "forward_mode_weight": Method("global", "local", "weight", per_block=True, mode="forward_mode"),
}
MEANINGS = {
    "cpu_activity": "CPU time of a step with local guesses in the activities / of a backpropagation",
    "cpu_averaged": "the same, in the weights with a coefficient per tensor",
    "cpu_per_sample": "the same, in the weights with a coefficient per sample",
    "cpu_forward_mode_activity": "the same in forward mode, in the activities with a coefficient per block",
    "cpu_forward_mode_weight": "the same in forward mode, in the weights with a coefficient per block",
    "memory_activity": "peak memory of that step / of a backpropagation",
    "memory_averaged": "the same, in the weights with a coefficient per tensor",
    "memory_per_sample": "the same, in the weights with a coefficient per sample",
    "forward_mode_memory_block0": "peak memory of a Jacobian-vector product from the first block / of backpropagation",
    "seconds_backpropagation": "CPU seconds of a backpropagation",
    "megabytes_backpropagation": "its peak memory in MB",
}


def measure(options: Options) -> dict[str, float]:
    """Three spaces with a global target and a local guess."""
    torch.set_num_threads(1)
    net, images, labels = fresh(options.width)
    contestants: dict[str, Callable[[], object]] = {PEER: partial(backpropagation, net, images, labels)}
    contestants |= {
        name: partial(step, net, images, labels, method) for name, method in (SPACES | FORWARD_MODE).items()
    }
    times = race(contestants, options.turns)
    peaks = {name: float(peak_bytes(compute)) for name, compute in contestants.items()}
    numbers = {f"cpu_{name}": ratio(times[name], times[PEER]) for name in (*SPACES, *FORWARD_MODE)}
    numbers |= {f"memory_{name}": peaks[name] / peaks[PEER] for name in SPACES}
    from_images = computations(net, 0, images, labels, torch.Generator().manual_seed(0))
    numbers["forward_mode_memory_block0"] = peak_bytes(from_images["jvp"]) / peak_bytes(from_images[PEER])
    numbers["seconds_backpropagation"] = median(times[PEER])
    return numbers | {"megabytes_backpropagation": peaks[PEER] / 2**20}


def fresh(width: float, batch: int = 128, size: int = 32) -> tuple[Net, Tensor, Tensor]:
    """A ResNet-18 in 8 blocks with cnn auxiliary nets, and a batch of noise with labels, laid out as in training."""
    body = blocks.build("resnet18_8", width=width, seed=0)
    heads = auxiliary.build_all("cnn", body, classes=10, seed=0)
    images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
    last = torch.channels_last
    return Net(body.modules, heads).to(memory_format=last), images.to(memory_format=last), torch.arange(batch) % 10


def backpropagation(net: Net, images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """The peer: forward and backward of the net alone, as anyone would write it."""
    loss = cross_entropy(torch.nn.Sequential(*net.blocks, net.auxiliaries[-1])(images), labels)
    return torch.autograd.grad(loss, [*net.blocks.parameters(), *net.auxiliaries[-1].parameters()])


def step(net: Net, images: Tensor, labels: Tensor, method: Method) -> Estimate:
    """One gradient estimate as in training."""
    noise = torch.Generator().manual_seed(0)
    return estimate(net.blocks, net.auxiliaries, images, labels, method, generator=noise, update_statistics=True)
