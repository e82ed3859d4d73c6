"""How much memory a Jacobian-vector product needs where backpropagation keeps every activation.

    python examples/forward_mode_memory.py

A deep chain of convolutions; the target's slope along a guess in the first block, by forward mode (nothing is kept) and
by backpropagation (everything is). Memory is counted in the tensors that are made: the same number on every run.
"""

import torch
from torch import nn
from torch.func import jvp
from torch.nn.functional import cross_entropy

from unlocked.forward_gradient.memory import peak_bytes


def chain(depth: int, channels: int = 16) -> nn.Sequential:
    """`depth` convolutions with ReLU, and a classifier."""
    layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1), nn.ReLU()]
    for _ in range(depth - 1):
        layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def compare(depth: int, batch: int = 16) -> tuple[int, int]:
    """Peak bytes of backpropagation, and of one Jacobian-vector product from the first layer's output."""
    torch.manual_seed(0)
    first, rest = (part := chain(depth))[:2], part[2:]
    images, labels = torch.randn(batch, 3, 32, 32), torch.arange(batch) % 10

    def backpropagation() -> object:
        return torch.autograd.grad(cross_entropy(rest(first(images)), labels), [*part.parameters()])

    def forward_mode() -> object:
        with torch.no_grad():
            features = first(images)
            guess = torch.randn_like(features)
            return jvp(lambda moved: cross_entropy(rest(moved), labels), (features,), (guess,))

    return peak_bytes(backpropagation), peak_bytes(forward_mode)


if __name__ == "__main__":
    print("layers   backpropagation   forward mode   ratio")
    for depth in (2, 4, 8, 16, 32):
        backward, forward = compare(depth)
        print(f"{depth:6}   {backward / 2**20:12.1f} MB   {forward / 2**20:9.1f} MB   {forward / backward:5.2f}")
