"""Nets of one's own: cut into blocks, given auxiliary nets, and trained as the examples do."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from unlocked.artifact.config import ROOT
from unlocked.errors import SettingError
from unlocked.forward_gradient import ForwardGradient, Method, heads, split


def chain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))


def test_the_parts_of_a_chain_compute_what_it_computes() -> None:
    model, inputs = chain(), torch.randn(2, 6)
    blocks, classifier = split(model, at=[2, 4])
    assert len(blocks) == 2
    assert torch.equal(classifier(blocks[1](blocks[0](inputs))), model(inputs))
    assert {id(p) for p in [*blocks.parameters(), *classifier.parameters()]} == {id(p) for p in model.parameters()}


def test_a_resnet_of_torchvision_is_cut_at_stages_and_between_their_blocks() -> None:
    model = resnet18(num_classes=7).eval()
    blocks, classifier = split(model, at=["layer1", "layer2.1", "layer4", "avgpool"])
    outputs = inputs = torch.randn(2, 3, 64, 64)
    for block in blocks:
        outputs = block(outputs)
    assert torch.equal(classifier(outputs), model(inputs))
    assert [tuple(shape) for shape in heads.shapes(blocks, inputs)] == [(64, 16, 16), (128, 8, 8), (256, 4, 4)]


@pytest.mark.parametrize(
    ("model", "at", "says"),
    [
        (chain(), [], "at least one cut"),
        (chain(), [2, 2], "in the order"),
        (chain(), [0], "none at the start"),
        (chain(), ["layer9"], "must be one of 0, 1, 2"),
        (nn.LSTM(3, 4), [1], "is no nn.Sequential and no torchvision ResNet"),
    ],
)
def test_what_cannot_be_cut_is_refused_in_one_line(model: nn.Module, at: list[int | str], says: str) -> None:
    with pytest.raises(SettingError, match=says):
        split(model, at)


@pytest.mark.parametrize("make", [heads.linear, heads.cnn, heads.mlp])
def test_heads_fit_maps_and_plain_features(make: object) -> None:
    inputs, shapes = torch.randn(4, 6, 9, 9), [(6, 9, 9)]
    [head] = make(shapes, 5)
    assert head(inputs).shape == (4, 5)
    if make is heads.cnn:
        with pytest.raises(SettingError, match=r"shape = \(8,\): must be \(channels, height, width\)"):
            make([(8,)], 5)
    else:
        [head] = make([(8,)], 5)
        assert head(torch.randn(4, 8)).shape == (4, 5)


def test_a_recurrent_block_is_refused_with_what_would_work() -> None:
    blocks = [nn.LSTM(3, 4, batch_first=True), nn.Flatten()]
    net = ForwardGradient(blocks, [nn.Linear(4, 2), nn.Linear(8, 2)], Method("global", "local"))
    with pytest.raises(SettingError, match="tensor"):
        net.backward(torch.randn(5, 2, 3), torch.zeros(5, dtype=torch.long))


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("own_model_forward_gradient.py", "random guess, weights"),
        ("forward_mode_memory.py", "forward mode   ratio"),
    ],
)
def test_the_examples_run(script: str, says: str) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "examples" / script)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert says in done.stdout
