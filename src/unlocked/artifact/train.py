"""Train runs into records, several in one process, and a run in one process at a time.

When Snakemake alone is killed its training processes live on, and the next call wants the same runs: it waits until
they are done, or takes over when they are dead. The lock is the kernel's (`flock`) and not the file, which stays.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pkgutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from unlocked import places
from unlocked.artifact import loop, record, resources
from unlocked.artifact.folders import locked
from unlocked.artifact.record import folder_of
from unlocked.artifact.tracking import Interrupted, Recorder, Stop
from unlocked.console import say
from unlocked.errors import SettingError, storage_error
from unlocked.papers.base import Training
from unlocked.papers.run import Data, Run
from unlocked.seeding import deterministic_kernels
from unlocked.units import human_time, plural
from unlocked.vision import data as vision_data
from unlocked.vision.data import Dataset


def data_key(run: Run) -> tuple[tuple[str, Any], ...]:
    """The arguments of `vision.data.load` for a run; empty where it reads no data."""
    if (data := run.data_set) is None:
        return ()
    runtime = run.runtime
    wanted = {field.name: getattr(data, field.name) for field in dataclasses.fields(Data)}
    wanted |= {"root": runtime.data_root, "device": runtime.device, "verify": runtime.verify_data}
    return tuple(wanted.items())


def load_data(key: tuple[tuple[str, Any], ...]) -> Dataset | None:
    return vision_data.load(**dict(key)) if key else None


def training_of(run: Run, data: Dataset | None) -> Training:
    training: Training = pkgutil.resolve_name(run.trainer)(run, data)
    return training


def check_machine(run: Run) -> None:
    """Refuse what this machine does not have, before anything is trained: the device, and if not forced, cores, memory
    and time."""
    device = run.runtime.device
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device != "cpu" and int(device.partition(":")[2] or 0) >= there:
        right = f"this machine has {plural(there, 'usable GPU')}" + ": use cpu" * (there == 0)
        raise SettingError("runtime.device", device, right)
    if not run.runtime.force:
        resources.refuse_excess(run, processes=1 if places.place() else run.processes)


@contextmanager
def storing(folder: Path) -> Iterator[None]:
    """Failed writes become one `StorageError` that names the folder of the results."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if (failure := storage_error(error, folder.parent)) is None:
            raise
        with suppress(OSError):  # a checkpoint that was cut short: the one before it is whole, the log needs the space
            (record.partial(folder) / "checkpoint.new").unlink(missing_ok=True)
        raise failure from error


@contextmanager
def lock(folder: Path, stop: Stop | None) -> Iterator[None]:
    """Hold the lock of the run of this folder; wait, with one line, while another process does.

    Raises `Interrupted` when the process is asked to stop while it waits.
    """
    path = folder.parent / "locks" / folder.name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b", buffering=0) as file:
        told = False
        while (mine := locked(file)) is False:
            if stop is not None and stop.requested is not None:
                raise Interrupted(stop.requested)
            if not told:
                holder = os.pread(file.fileno(), 200, 0).decode(errors="replace") or "another process"
                say(f"{path.name} is being trained by {holder}: waiting for it")
            told = True
            time.sleep(0.2)
        if mine is None:
            say(f"no locks in {path.parent}: start no second workflow on these results")
        with suppress(OSError):  # on a full disk, those who wait are told less
            file.truncate(0)
            file.write(f"process {os.getpid()} on {os.uname().nodename}".encode())
        yield


def train_one(run: Run, results: Path, data: Dataset | None, items: Iterable[str], stop: Stop | None) -> bool:
    """Train one run unless another process did so while this one waited for it; returns whether it was trained."""
    folder = folder_of(results, run)
    with storing(folder), lock(folder, stop):
        record.finish_replacing(folder)
        if record.current(folder, run):
            return False
        record.set_damaged_aside(folder)
        if (seconds := run.estimate().seconds) > 60:
            print(f"{run.id} takes about {human_time(seconds)}", flush=True)
        torch.set_num_threads(run.runtime.threads)
        deterministic_kernels()
        training = training_of(run, data)
        recorder = Recorder(folder, run, items, stop)
        try:
            while not ended(training, recorder, data):
                training = training_of(run, data)
        except BaseException:
            recorder.close(1, {})
            raise
    return True


def ended(training: Training, recorder: Recorder, data: Dataset | None) -> bool:
    """Train to the end; False where this training is spoilt by a checkpoint that does not fit it."""
    try:
        loop.run(training, recorder, data)
    except loop.Unusable:
        return False
    finally:
        if close := getattr(training, "close", None):  # of trainings that have processes of their own
            close()
    return True


def train(runs: Sequence[Run], results: Path, items: Mapping[str, Iterable[str]] | None = None) -> list[str]:
    """Train all `runs` whose record does not hold yet; returns the ids of those that were trained.

    items: for every run id the items that want it, for tags. Where torchrun or Slurm started this process, rank 0
    trains, and every other rank works for rank 0's runs, one after the other.
    """
    where = places.place()
    if where is None:
        return train_here(runs, results, items or {})
    for run in runs:
        if run.launcher is None:
            raise SettingError("run", run.id, "computes in one process: start it without torchrun or srun")
    launcher: Any = pkgutil.resolve_name(runs[0].launcher or "")
    if where.rank:
        by_id = {run.id: run for run in runs}
        launcher.follow(where, lambda name: (by_id[name], load_data(data_key(by_id[name]))))
        return []
    with launcher.together(where, runs[0].runtime):
        return train_here(runs, results, items or {})


def train_here(runs: Sequence[Run], results: Path, items: Mapping[str, Iterable[str]]) -> list[str]:
    """Train in this process: all devices and data are checked first, one data set is in memory at a time."""
    waiting = list({run.id: run for run in runs if not record.current(folder_of(results, run), run)}.values())
    for run in waiting:
        check_machine(run)
    keys = list(dict.fromkeys(map(data_key, waiting)))
    load = functools.lru_cache(maxsize=1)(load_data)
    for key in reversed(keys):  # the first to be used stays loaded
        load(key)
    waiting.sort(key=lambda run: keys.index(data_key(run)))
    with Stop() as stop:
        wanted = ((run, load(data_key(run)), items.get(run.id, ())) for run in waiting)
        return [run.id for run, data, tags in wanted if train_one(run, results, data, tags, stop)]
