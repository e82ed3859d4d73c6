"""What a gradient estimate costs against backpropagation: `python benchmarks/forward_gradient.py`, half an hour idle.

Writes `benchmarks/results/forward_gradient.json` and `forward_gradient.md`: CPU time, wall time and peak memory of a
step in every space, with every guess, in both modes, each as a ratio to backpropagation in the same run; the least that
it could cost; and where the time of a step goes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import pages
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile

from unlocked.forward_gradient.estimator import Estimate, estimate
from unlocked.forward_gradient.memory import peak_bytes
from unlocked.forward_gradient.method import Method
from unlocked.papers.forward_gradient.network import Net
from unlocked.papers.forward_gradient.studies import computations
from unlocked.vision import auxiliary, blocks

# Ratios, on one thread, in CPU time. Memory is the peak of the tensors that a step makes beyond what was there before:
# the same number on every run

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
    "cpu_bare_activity": "CPU time of the passes that a step in the activities needs, no more / of a backpropagation",
    "cpu_bare_averaged": "the same of one in the weights with a coefficient per tensor",
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


def ratios(options: pages.Options) -> dict[str, float]:
    """Three spaces with a global target and a local guess."""
    torch.set_num_threads(1)
    net, images, labels = fresh(options.width)
    steps = {PEER: backpropagation} | BARE | {name: partial(step, method=one) for name, one in METHODS.items()}
    own = {name: partial(compute, net, images, labels) for name, compute in steps.items()}
    times = pages.race(own, options.turns)
    peaks = {name: float(peak_bytes(own[name])) for name in (PEER, *SPACES)}
    numbers = {f"cpu_{name}": pages.ratio(times[name], times[PEER]) for name in own if name != PEER}
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


def bare(net: Net, images: Tensor, labels: Tensor, averaged: bool) -> list[tuple[Tensor, ...]]:
    """The floor: the passes that a step with local guesses cannot do without, by plain autograd, nothing between them.

    Forward once; every auxiliary net forward and backward; the target back through all blocks, for inputs alone or, in
    the weights, also for parameters; and in every block but the last what was guessed back to its parameters.
    """
    passes, features, found = [], images, []
    for block in net.blocks:
        inputs = features.detach().requires_grad_()
        features = block(inputs)
        passes.append((inputs, features))
    guesses = []
    for (_, outputs), head in zip(passes, net.auxiliaries, strict=True):
        at = outputs.detach().requires_grad_()
        guess, *of_head = torch.autograd.grad(cross_entropy(head(at), labels), [at, *head.parameters()])
        guesses.append(guess)
        found.append(tuple(of_head))
    target = guesses.pop()
    for index in reversed(range(len(passes))):
        (inputs, outputs), parameters = passes[index], list(net.blocks[index].parameters())
        is_last = index == len(guesses)
        wanted = [inputs] * (index > 0) + parameters * (averaged or is_last)
        if wanted:
            target, *_ = torch.autograd.grad(outputs, wanted, target, retain_graph=not is_last)
        if not is_last:
            found.append(torch.autograd.grad(outputs, parameters, guesses[index]))
    return found


METHODS = SPACES | FORWARD_MODE
BARE = {f"bare_{name}": partial(bare, averaged=name == "averaged") for name in ("activity", "averaged")}

# All guesses, both modes

# In forward mode a coefficient takes a Jacobian-vector product: per block, per tensor, or one per sample and block
IN_FORWARD_MODE = {
    "activity, per block": FORWARD_MODE["forward_mode_activity"],
    "weights, per block": FORWARD_MODE["forward_mode_weight"],
    "weights, per tensor": Method("global", "local", "weight", mode="forward_mode"),
    "activity, per sample": Method("global", "local", "activity", mode="forward_mode"),
}


def contestants(width: float) -> dict[str, Callable[[Net, Tensor, Tensor], object]]:
    """Every step by name. Forward mode where it does not take hours."""
    methods = {
        f"{name}, {guess}, projection": replace(method, guess=guess)
        for name, method in SPACES.items()
        for guess in ("local", "ntk", "random")
    }
    if width < 1:
        methods |= {f"{name}, local, forward_mode": method for name, method in IN_FORWARD_MODE.items()}
    floors = {f"{name.removeprefix('bare_')}, local, floor": compute for name, compute in BARE.items()}
    return {PEER: backpropagation} | floors | {name: partial(step, method=one) for name, one in methods.items()}


def computation(width: float, name: str) -> Callable[[], object]:
    """One step of a contestant on a fresh net."""
    torch.set_num_threads(1)
    return partial(contestants(width)[name], *fresh(width))


def resident(width: float, name: str) -> float:
    """Peak resident bytes of this process when it has taken two steps."""
    compute = computation(width, name)
    for _ in range(2):
        compute()
    # not getrusage: a process inherits its parent's peak there, even through exec
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return 1024.0 * int(line.split()[1])


def timed(width: float, turns: int) -> dict[str, list[tuple[float, float]]]:
    """CPU and wall seconds of every contestant in every turn; the slow forward mode takes one turn."""
    steps = {name: computation(width, name) for name in contestants(width)}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for turn in range(turns + 1):
        for name, compute in steps.items():
            if turn <= 1 or not name.endswith("forward_mode"):
                start = time.process_time(), time.perf_counter()
                compute()
                times[name].append((time.process_time() - start[0], time.perf_counter() - start[1]))
    return {name: values[1:] for name, values in times.items()}


def table(width: float, turns: int) -> pages.Rows:
    """One row per contestant, everything but the last two columns a ratio to the first row."""
    times, peaks = timed(width, turns), {}
    for name in times:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as own:
            peaks[name] = peak_bytes(computation(width, name)), own.submit(resident, width, name).result()
    return [
        {
            "width": width,
            "step": name,
            "CPU": median(one[0] / other[0] for one, other in zip(own, times[PEER], strict=False)),
            "wall": median(one[1] / other[1] for one, other in zip(own, times[PEER], strict=False)),
            "peak tensors": peaks[name][0] / peaks[PEER][0],
            "peak resident": peaks[name][1] / peaks[PEER][1],
            "CPU seconds": median(one[0] for one in own),
            "MB of tensors": peaks[name][0] / 2**20,
        }
        for name, own in times.items()
    ]


def profiled(width: float, name: str) -> pages.Rows:
    """The operations that take most of a step's time."""
    compute = computation(width, name)
    compute()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        compute()
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    whole = sum(event.self_cpu_time_total for event in events)
    return [
        {"step": name, "operation": event.key, "calls": event.count, "share": event.self_cpu_time_total / whole}
        for event in events[:8]
    ]


def measure(options: argparse.Namespace) -> dict[str, pages.Rows]:
    """All tables."""
    steps = (PEER, *(f"{space}, local, projection" for space in SPACES))
    return {
        "table": [row for width in options.widths for row in table(width, options.turns)],
        "profile": [row for name in steps for row in profiled(options.widths[-1], name)],
    }


TEXT = """# A gradient estimate, measured

Written by `python benchmarks/forward_gradient.py`. {environment}. ResNet-18 in 8 blocks, cnn auxiliary nets, batch 128,
32×32 pixels, channels last, global target. All columns but the last two are ratios to backpropagation in the same run:
CPU and wall time the median over turns in which the contestants alternate, on one thread; peak tensors the most that
the step's tensors take beyond what was there before, counted operation by operation; peak resident that of a fresh
process that takes two steps, of which Python and torch take half a gigabyte.

The floor of a step is timed, not counted: the passes that it cannot do without, by plain autograd, nothing between
them. In the activities: one forward, auxiliary nets forward and backward, the target back for inputs alone, and what
was guessed back inside every block. In the weights with a coefficient per tensor also the target's weight gradients.

{table}

In forward mode every coefficient takes a Jacobian-vector product through the later blocks. At width 1 it is left out.

## Where the time goes

Share of a step's CPU time at width 1.

{profile}
"""

if __name__ == "__main__":
    pages.write("forward_gradient", TEXT, measure, turns=7, widths=[0.125, 1.0])
