"""Peak memory, counted in tensors."""

from __future__ import annotations

import torch
from torch import nn

from unlocked.forward_gradient.memory import peak_bytes


def test_peak_memory_counts_what_lives_at_once() -> None:
    """Temporaries that are freed are taken off, what was there before is not counted, in place costs nothing."""
    there = torch.zeros(1000)  # 4000 bytes
    assert peak_bytes(lambda: there + 1) == 4000
    assert peak_bytes(lambda: ((there + 1) + 1) + 1) == 8000
    assert peak_bytes(lambda: there.clone().add_(1)) == 4000
    assert peak_bytes(lambda: there.view(10, 100).add_(0)) == 0


def test_peak_memory_of_a_way_back_grows_with_depth() -> None:
    def way_back(depth: int) -> int:
        net = nn.Sequential(*(nn.Sequential(nn.Linear(50, 50), nn.Tanh()) for _ in range(depth)))
        inputs = torch.zeros(10, 50)
        return peak_bytes(lambda: torch.autograd.grad(net(inputs).sum(), list(net.parameters())))

    assert way_back(20) > 1.8 * way_back(10)
