"""Train runs: from resolved configs to records, several in one process.

Third on the road: chooses the engine, loads the data once for runs that share it, and skips runs whose record holds.
A run is trained by one process at a time; a folder that cannot be written ends in one line.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from omegaconf import DictConfig

from unlocked import budget, config, fingerprint, lock, loop, plan, record
from unlocked.errors import SettingError, storage_error
from unlocked.gossip.processes import places
from unlocked.record import folder_of
from unlocked.tracking import Recorder, Stop
from unlocked.vision import data as vision_data
from unlocked.vision.data import Dataset


class NoData:
    """What the record of a run without a data set says of its data."""

    name, checksum = "none", "none"
    source = "a written-down problem, drawn from the run's seed"


def data_key(run: DictConfig) -> tuple:
    """What a loaded data set depends on; empty for a run without one."""
    if not budget.has_data(run):
        return ()
    d, r = run.data, run.runtime
    return d.name, d.size, d.train_limit, d.test_limit, d.augmentation, r.data_root, r.device, r.threads, r.verify_data


def load_data(key: tuple) -> Dataset | NoData:
    """The data set of a key, on its device."""
    if not key:
        return NoData()
    name, size, train_limit, test_limit, augmentation, root, device, threads, verify = key
    return vision_data.load(
        name,
        root,
        device=device,
        size=size,
        train_limit=train_limit,
        test_limit=test_limit,
        augmentation=augmentation,
        threads=threads,
        verify=verify,
    )


@contextmanager
def storing(folder: Path) -> Iterator[None]:
    """Failed writes become one `StorageError` that names the folder of the results.

    A checkpoint that was cut short is removed: the one before it is whole, and the log needs the space.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        found = storage_error(error, folder.parent)
        if found is None:
            raise
        with suppress(OSError):
            (record.partial(folder) / "checkpoint.new").unlink(missing_ok=True)
        raise found from error


def holds(run: DictConfig, results: Path) -> bool:
    """Whether the record of a run is there and need not be made again."""
    return record.current(folder_of(results, run), run, fingerprint.training(plan.engine(run)))


def train_one(run: DictConfig, results: Path, data: Dataset, items: Iterable[str], stop: Stop | None) -> str:
    """Train one run and return its status."""
    engine = plan.engine(run)
    torch.set_num_threads(run.runtime.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    training = importlib.import_module(engine).Training(run, data)
    recorder = Recorder(
        folder_of(results, run),
        run,
        total_steps=plan.estimate(run).gradients,
        items=items,
        code=fingerprint.training(engine),
        stop=stop,
    )
    try:
        return loop.run(training, recorder, data)["status"]
    except BaseException:
        recorder.interrupt()
        raise
    finally:
        if close := getattr(training, "close", None):  # of trainings that have processes of their own
            close()


def train_alone(run: DictConfig, results: Path, data: Dataset | NoData, items: Iterable[str], stop: Stop) -> bool:
    """Train one run unless another process did so while this one waited for it; returns whether it was trained."""
    folder = folder_of(results, run)
    with storing(folder), lock.held(folder, stop):
        record.finish_replacing(folder)
        if holds(run, results):
            return False
        train_one(run, results, data, items, stop)
    return True


def train(runs: Sequence[DictConfig], results: Path, items: Mapping[str, Iterable[str]] | None = None) -> list[str]:
    """Train `runs`, as `train_here` does; where torchrun or Slurm started this process, its rank 0 does so.

    Every other rank becomes a worker of rank 0's runs, one run after the other.
    """
    where = places.place()
    if where is None:
        return train_here(runs, results, items)
    from unlocked.gossip.processes import launch

    for run in runs:
        if config.kind(run) != "processes":
            raise SettingError("engine", run.get("engine"), "must be processes for what torchrun or srun starts")
    if where.rank:
        launch.follow(where)
        return []
    with launch.together(where, runs[0].runtime.interface):
        return train_here(runs, results, items)


def train_here(
    runs: Sequence[DictConfig], results: Path, items: Mapping[str, Iterable[str]] | None = None
) -> list[str]:
    """Train all `runs` whose record does not hold yet; returns the ids of those that were trained.

    `items`: for every run id the items that want it, for tags. Devices and data sets are checked before the first
    training; runs that share a data set follow each other, so that one is in memory at a time.
    """
    unique = {config.run_id(run): run for run in runs}
    waiting = {name: run for name, run in unique.items() if not holds(run, results)}
    keys = dict.fromkeys(data_key(run) for run in waiting.values())
    for run in waiting.values():
        loop.check_device(run)
    data, done = None, []
    for key in reversed(keys):  # the first to be used stays loaded
        data = load_data(key)
    with Stop() as stop:
        for number, key in enumerate(keys):
            data = data if number == 0 else load_data(key)
            for name, run in waiting.items():
                if data_key(run) == key and train_alone(run, results, data, (items or {}).get(name, ()), stop):
                    done.append(name)
    return done
