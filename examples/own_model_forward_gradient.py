"""Forward gradients on a net of one's own: a small convolutional net on scikit-learn's digits, one row per guess.

    python examples/own_model_forward_gradient.py

The net is any `nn.Sequential`; it is cut into blocks, every block but the last gets a small auxiliary net, and a
`Method` says which gradient estimate fills `.grad`. Any torch optimiser does the rest.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

from unlocked.forward_gradient import ForwardGradient, Method, heads, split

METHODS = {
    "backpropagation": Method("global", "global"),
    "local learning": Method("local", "local"),
    "local guess, activities": Method("global", "local", "activity"),
    "local guess, weights": Method("global", "local", "weight"),
    "random guess, activities": Method("global", "random", "activity"),
    "random guess, weights": Method("global", "random", "weight"),
}


def digits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Training images and labels, test images and labels."""
    found = load_digits()
    images, labels = torch.tensor(found.images, dtype=torch.float32)[:, None] / 16, torch.tensor(found.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    images, labels = images[order], labels[order]
    return images[:1400], labels[:1400], images[1400:], labels[1400:]


def own_net() -> nn.Sequential:
    """What you have: no part of it knows of blocks."""
    layers: list[nn.Module] = []
    for before, after, stride in ((1, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2)):
        layers += [nn.Conv2d(before, after, 3, stride, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def accuracy(method: Method, epochs: int = 6, seed: int = 0) -> float:
    """Train with a method and test."""
    torch.manual_seed(seed)
    images, labels, test_images, test_labels = digits()
    blocks, classifier = split(own_net(), at=[3, 6, 9, 12])
    auxiliaries = [*heads.linear(heads.shapes(blocks, images[:2]), classes=10), classifier]
    net = ForwardGradient(blocks, auxiliaries, method)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(64):
            net.backward(images[batch], labels[batch])  # fills .grad
            optimiser.step()
    net.eval()
    with torch.no_grad():
        return float((net(test_images).argmax(1) == test_labels).double().mean())


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, method in METHODS.items():
        print(f"{name:<28} {100 * accuracy(method):5.1f} %", flush=True)
