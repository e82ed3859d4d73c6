"""Your own model, by gossip and by AR-SGD (DistributedDataParallel) for the same time, on scikit-learn's digits.

    torchrun --nproc-per-node 4 examples/own_model_gossip.py

Worker 0 is slow. Under AR-SGD all wait for it at every step; under gossip nobody does, so that the others do more
gradients in the same time. Prints the accuracy of the final model, and what each worker did and how long it waited.
"""

import copy
import time
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from unlocked.gossip import AsyncGossip

STEPS, BATCH, LR = 150, 32, 0.05
SECONDS = 0.005  # that a gradient takes longer than on this small model; three times as long for worker 0


def data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images and labels, test images and labels."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order[:1400], order[1400:]
    return x[train], y[train], x[test], y[test]


def network() -> nn.Module:
    """A small one."""
    return nn.Sequential(nn.Linear(64, 128), nn.LayerNorm(128), nn.ReLU(), nn.Linear(128, 10))


def batches(x: Tensor, y: Tensor, more: Callable[[int], bool]) -> Iterator[tuple[Tensor, Tensor]]:
    """This worker's own random batches, as long as there are to be more."""
    draws, count = torch.Generator().manual_seed(1 + dist.get_rank()), 0
    while more(count):
        chosen = torch.randint(len(x), (BATCH,), generator=draws)
        time.sleep(SECONDS * (3 if dist.get_rank() == 0 else 1))
        yield x[chosen], y[chosen]
        count += 1


def allreduce(model: nn.Module, x: Tensor, y: Tensor) -> tuple[int, float, float]:
    """AR-SGD; its number of gradients, the seconds from own gradients to their mean over workers, and all seconds."""
    ready = waited = 0.0

    def hook(group: dist.ProcessGroup, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        nonlocal ready
        ready = time.perf_counter()
        return allreduce_hook(group, bucket)

    parallel = DistributedDataParallel(model)
    parallel.register_comm_hook(dist.group.WORLD, hook)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
    begun = time.perf_counter()
    for images, labels in batches(x, y, lambda count: count < STEPS):
        optimizer.zero_grad()
        cross_entropy(parallel(images), labels).backward()
        waited += time.perf_counter() - ready
        optimizer.step()
    return STEPS, waited, time.perf_counter() - begun


def gossip(model: nn.Module, x: Tensor, y: Tensor, seconds: float) -> tuple[int, float]:
    """A²CiD² for so many seconds; its number of gradients and the seconds waited for other workers."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
    with AsyncGossip(model, optimizer, graph="ring", rate=1.0) as together:
        end = time.perf_counter() + seconds
        for images, labels in batches(x, y, lambda _: time.perf_counter() < end):
            optimizer.zero_grad()
            cross_entropy(model(images), labels).backward()
            together.step()
        done = together.statistics()
        together.average_()
    return done["steps"], done["seconds_waited"]


def report(name: str, model: nn.Module, x: Tensor, y: Tensor, did: tuple[int, float]) -> None:
    """One line per method and worker, by rank 0."""
    everybody: list = [None] * dist.get_world_size()
    dist.all_gather_object(everybody, did)
    model.eval()
    accuracy = float((model(x).argmax(1) == y).float().mean())
    if dist.get_rank() == 0:
        print(f"{name}: test accuracy {accuracy:.3f}")
        for rank, (gradients, waited) in enumerate(everybody):
            print(f"  worker {rank}: {gradients} gradients, waited {waited:.2f} s")


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group("gloo")
    x, y, test_x, test_y = data()
    start = network()
    model = copy.deepcopy(start)
    gradients, waited, seconds = allreduce(model, x, y)
    report(f"AR-SGD, {seconds:.1f} s", model, test_x, test_y, (gradients, waited))
    model = copy.deepcopy(start)
    report("gossip, as long", model, test_x, test_y, gossip(model, x, y, seconds))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
