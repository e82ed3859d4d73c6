"""The methods without the artifact: what the wheel asks for, and that they work with that and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from unlocked.artifact.config import ROOT

NEEDED = {"torch", "numpy", "networkx"}
# Run with the wheel alone on the path: whatever only the artifact needs is made impossible to import.
SCRIPT = """
import sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in REFUSED:
            raise ModuleNotFoundError(f"{name} is not among what the methods need", name=name)

sys.meta_path.insert(0, Refused())
import torch
from torch import nn
import unlocked.gossip as gossip
from unlocked.gossip import momentum, topology
from unlocked.gossip.reference import replay
from unlocked.forward_gradient import ForwardGradient, Method, heads, split

constants = momentum.Constants.accelerated(*topology.chi(topology.build("ring", 8)))
x, _ = replay([("communication", 1.0, 0, 1)], torch.eye(8), constants, lr=0.1)
assert torch.allclose(x[0], x[1])
images, labels = torch.randn(5, 4), torch.arange(5) % 3
blocks, classifier = split(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 3)), at=[2, 3])
net = ForwardGradient(blocks, [*heads.linear(heads.shapes(blocks, images), 3), classifier], Method("global", "local"))
net.backward(images, labels)
assert all(p.grad is not None for p in net.parameters())
print(gossip.__file__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
        str(folder),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


def requirements(wheel: Path) -> dict[str, str]:
    """What the wheel asks for: names, and the extra that each belongs to."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith("METADATA"))
        lines = archive.read(name).decode().splitlines()
    wanted = [line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist: ")]
    names = [min(line.split(mark)[0] for mark in "><=;! ") for line in wanted]
    extras = [line.partition("extra == ")[2].strip("\"' ") for line in wanted]
    return dict(zip(names, extras, strict=True))


def test_the_wheel_brings_what_the_methods_need_and_an_extra_the_rest(wheel: Path) -> None:
    asked = requirements(wheel)
    assert {name for name, extra in asked.items() if not extra} == NEEDED
    rest = {name for name, extra in asked.items() if extra == "workflow"}
    assert {"omegaconf", "pandas", "snakemake", "wandb"} <= rest


def test_the_methods_work_with_nothing_else(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    refused = {name.replace("-", "_") for name, extra in requirements(wheel).items() if extra} - NEEDED
    refused |= {"sklearn", "PIL", "yaml"}
    script = f"REFUSED = {refused!r}\n{SCRIPT}"
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().startswith(str(tmp_path))
