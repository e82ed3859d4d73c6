"""How much a run does: images, gradients. Apart from `config`, because results depend on it.

Between config and plan, without torch; the trainers ask here too, so a change retrains.
"""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from unlocked.vision.catalogue import DATASETS


def has_data(run: DictConfig) -> bool:
    """Whether a run reads a data set: all but paper A's studies without a network."""
    return run.paper != "acid" or run.study == "training"


def train_size(run: DictConfig) -> int:
    """Training images of a run."""
    whole = DATASETS[run.data.name].train
    return min(whole, run.data.train_limit or whole)


def total_gradients(run: DictConfig) -> int:
    """Gradients of a run over all workers: `epochs * floor(N / batch)`, cut to a multiple of the workers."""
    workers = OmegaConf.select(run, "workers") or 1
    if not has_data(run):
        return int(run.quadratic.horizon * workers) if run.study == "quadratic" else 0
    return int(run.optim.epochs * (train_size(run) // run.optim.batch_size)) // workers * workers
