"""Cells of the paper's own settings, cut to a few gradients: their networks, on files as the data sets have them.

Every kind of run that the paper scale plans goes through the command line once. The images are made of noise; what is
real is the format of the files, the networks, the image sizes and the settings of the scale.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import DictConfig
from PIL import Image

from unlocked import config, record

pytestmark = pytest.mark.slow

FEW = {
    "workers": 4,
    "optim.batch_size": 2,
    "optim.epochs": 1.0,
    "optim.warmup_epochs": 0.5,
    "data.train_limit": 16,
    "data.test_limit": 4,
    "evaluation.points": 1,
    "evaluation.recalibration_batches": 2,
    "evaluation.train_limit": 4,
    "runtime.verify_data": False,
    "runtime.wandb": "disabled",
}
CELLS: list[dict[str, Any]] = [
    {"method": "acid", "graph": "ring"},
    {"method": "acid", "graph": "exponential"},
    {"method": "baseline", "graph": "ring", "rate": 2.0},
    {"method": "baseline", "graph": "exponential"},
    {"method": "baseline", "graph": "complete"},
    {"method": "allreduce"},
]
IMAGENET = {
    "data.name": "imagenet",
    "model.name": "resnet50",
    "optim.epochs": 0.5,
    "optim.milestones": [1 / 3, 2 / 3, 8 / 9],
    "data.test_limit": 2,
    "evaluation.train_limit": 2,
    "evaluation.points": 1,
    "evaluation.workers": "never",
}


def write_cifar10(root: Path) -> None:
    """Pickles as CIFAR-10 has them."""
    folder, draws = root / "cifar-10-batches-py", np.random.default_rng(0)
    folder.mkdir(parents=True)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        content = {"data": draws.integers(0, 256, (4, 3072), dtype=np.uint8), "labels": [0, 3, 9, 5]}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))


def write_imagenet(root: Path) -> None:
    """Folders of JPEG files as ImageNet has them, of different sizes."""
    draws = np.random.default_rng(0)
    for part, each in (("train", 8), ("val", 1)):
        for wordnet in ("n01440764", "n02102040"):
            folder = root / "imagenet" / part / wordnet
            folder.mkdir(parents=True)
            for number in range(each):
                pixels = draws.integers(0, 256, (240 + 10 * number, 300, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{wordnet}_{number}.JPEG")


@pytest.fixture
def train_cells(tmp_path: Path, start_command: Any, config_file: Any) -> Callable[..., list[record.Record]]:
    """Train cells of the paper scale with `python -m unlocked train`, and read their records."""

    def go(cells: list[dict[str, Any]], changes: dict[str, Any]) -> list[record.Record]:
        base = config.defaults("acid", config.load_scale("paper"))
        common = FEW | changes | {"runtime.data_root": str(tmp_path / "data")}
        runs: list[DictConfig] = [config.resolve(base, common | cell) for cell in cells]
        results = tmp_path / "results"
        process = start_command("train", *map(config_file, runs), "--results", results)
        output, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
        assert f"{len(runs)} of {len(runs)} runs trained" in output
        return [record.load(record.folder_of(results, run)) for run in runs]

    return go


def check(found: record.Record, gradients: int, test_images: int) -> None:
    """The record is whole, and its numbers are numbers."""
    assert found.summary["status"] == "completed"
    assert found.summary["counts"]["gradients"] == gradients
    metrics = found.summary["metrics"]
    assert np.isfinite(metrics["train_loss"])
    assert np.isfinite(metrics["test_loss"])
    assert metrics["test_accuracy"] * test_images == pytest.approx(round(metrics["test_accuracy"] * test_images))
    if found.config.method != "allreduce":
        assert metrics["consensus_distance"] > 0
        assert found.summary["counts"]["communications"] > 0


def test_cifar10_cells(tmp_path: Path, train_cells: Any) -> None:
    """ResNet-18 at 32×32, crops and flips, every method on its graphs."""
    write_cifar10(tmp_path / "data")
    for found in train_cells(CELLS, {}):
        assert found.config.model.name == "resnet18"
        assert found.config.optim.lr == 0.1
        check(found, gradients=8, test_images=4)
        if found.config.method != "allreduce":
            assert 0 <= found.summary["metrics"]["worker_test_accuracy_min"] <= 1


@pytest.mark.parametrize(
    ("cells", "workers"), [([CELLS[0]], 4), ([CELLS[1], CELLS[4], CELLS[5]], 2)], ids=["ring", "two workers"]
)
def test_imagenet_cells(tmp_path: Path, train_cells: Any, cells: list[dict[str, Any]], workers: int) -> None:
    """ResNet-50 at 224×224 from JPEG files: the parameters of a whole network per worker, a few gradients."""
    write_imagenet(tmp_path / "data")
    for found in train_cells(cells, IMAGENET | {"workers": workers}):
        assert found.config.model.name == "resnet50"
        check(found, gradients=4, test_images=2)
