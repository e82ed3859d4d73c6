"""`unlocked doctor`: what this machine can run, what is missing and how to get it, and what each scale would cost here.

Costs are the plan's estimates times what a short measurement of this machine takes against what the estimates assume.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import time
import timeit
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import torch

from unlocked.artifact.config import ROOT, SCALES
from unlocked.artifact.folders import existing_part
from unlocked.artifact.plan import Plan
from unlocked.errors import DataError, one_line
from unlocked.papers import PAPERS
from unlocked.papers.run import OVERHEAD
from unlocked.units import human_bytes, human_time
from unlocked.vision import data, models

CLUSTER = "snakemake-executor-plugin-slurm"
PACKAGES = ("torch", "torchvision", "snakemake", "wandb", CLUSTER)
FREE_GB = 10  # the environment alone takes 6
RECORD_MB = 0.1  # of a finished run, its offline W&B run included
# What is measured, (net, data set, pixels, batch): one gradient that is all overhead, and one that is all arithmetic.
CALIBRATION = {"quick": ("mlp", "digits", 8, 8), "reduced": ("conv", "fashion_mnist", 14, 64)}
REFERENCE = {"quick": 1.4e-4, "reduced": 4.9e-3}  # its seconds on the core that the plan's constants were measured on


def finding(topic: str, text: str, advice: str = "") -> str:
    """One line; `advice` marks a problem and says what to do."""
    return f"! {topic:<32} {text}: {advice}" if advice else f"  {topic:<32} {text}"


def examine(root: Path, results: Path) -> Iterator[str]:
    """Everything about this machine that the workflow depends on. Data sets are neither downloaded nor verified."""
    tested = (3, 11) <= sys.version_info[:2] <= (3, 13)
    yield finding("python", platform.python_version(), "" if tested else "use Python 3.11 to 3.13")
    locked = dict(re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    yield from (version(name, locked.get(name)) for name in PACKAGES)
    yield finding("cores", f"{usable_cores()} usable of {os.cpu_count()}")
    memory = psutil.virtual_memory()
    yield finding("memory", f"{human_bytes(memory.total)}, {human_bytes(memory.available)} free")
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    names = [f"{gpu.name}, {human_bytes(gpu.total_memory)}" for gpu in gpus]
    yield finding("gpu", "; ".join(names) or "none that torch can use: the quick and reduced scales run without")
    for name in data.DATASETS:
        try:
            yield finding(f"data {name}", data.load(name, root, download=False, verify=False).source)
        except DataError as error:
            yield finding(f"data {name}", "not found", one_line(error))
    yield slurm()
    yield storage(results)


def version(name: str, locked: str | None) -> str:
    """One package: installed, and as in the lock?"""
    try:
        here = metadata.version(name)
    except metadata.PackageNotFoundError:
        where = "needed on a cluster only: " if name == CLUSTER else ""
        return finding(name, "not installed", f"{where}pip install {name}{f'=={locked}' if locked else ''}")
    same = locked in (None, here.partition("+")[0])
    return finding(name, here, "" if same else f"the lock has {locked}: numbers may differ in the last digits")


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def slurm() -> str:
    if shutil.which("sbatch") is None:
        return finding("slurm", "not found: everything runs on this machine")
    try:
        done = subprocess.run(["sinfo", "--noheader"], capture_output=True, text=True, timeout=20, check=True)
        return finding("slurm", f"{done.stdout.split()[0]}: see docs/cluster.md")
    except (OSError, subprocess.SubprocessError, IndexError):
        return finding("slurm", "installed, does not answer", "start slurmctld, or ask the cluster's administrators")


def storage(results: Path) -> str:
    """Whether results can be written, and how much fits."""
    place = existing_part(results)
    free = shutil.disk_usage(place).free
    advice = f"free {FREE_GB} GB" if free < FREE_GB * 1e9 else ""
    if not os.access(place, os.W_OK):
        advice = f"{place} cannot be written: choose --config results=..."
    return finding("disk", f"{human_bytes(free)} free for {results}", advice)


def gradient_seconds(name: str, dataset: str, size: int, batch: int, device: str) -> float:
    """The shortest time of a gradient with one thread; on a core only what it spends on us."""
    about = data.DATASETS[dataset]
    net = models.build(name, classes=about.classes, channels=about.channels, size=size, seed=0).to(device)
    images = torch.zeros(batch, about.channels, size, size, device=device)
    labels = torch.zeros(batch, dtype=torch.long, device=device)
    step = "net.zero_grad(); torch.nn.functional.cross_entropy(net(images), labels).backward()"
    step, clock = (step, time.process_time) if device == "cpu" else (f"{step}; torch.cuda.synchronize()", time.time)
    torch.set_num_threads(1)
    timer = timeit.Timer(step, timer=clock, globals={"net": net, "images": images, "labels": labels, "torch": torch})
    number, _ = timer.autorange()  # as many as take 0.2 s
    return min(timer.repeat(5, number)) / number


def costs(plan: Plan, factor: float, device: str) -> Iterator[dict[str, Any]]:
    """Of each paper on this machine, if a gradient takes `factor` times as long as the plan assumes; seconds, bytes."""
    at_once = 1 if device == "cuda" else usable_cores()
    for paper in PAPERS:
        batches = [batch for batch in plan.batches.values() if batch.paper == paper]
        jobs = [[plan.runs[name].estimate() for name in batch.runs] for batch in batches]
        seconds = [factor * sum(run.seconds for run in job) for job in jobs]
        runs, memory = sum(map(len, jobs)), at_once * max((run.memory_mb for job in jobs for run in job), default=0)
        yield {
            "scale": plan.scale.name,
            "paper": paper,
            "runs": runs,
            "computing": sum(seconds),
            "in all": max(sum(seconds) / at_once, max(seconds, default=0)),  # no less than the longest job
            "disk": 1e6 * (RECORD_MB * runs + memory),  # records, and a checkpoint per running job
            "memory": 1e6 * memory,
        }


def diagnose(root: Path, results: Path) -> str:
    """The whole examination, then what every scale would cost."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    expected = REFERENCE if device == "cpu" else dict.fromkeys(REFERENCE, OVERHEAD[device])  # such nets leave GPUs idle
    slowness = {name: gradient_seconds(*net, device) / expected[name] for name, net in CALIBRATION.items()}
    slow = ", ".join(f"{value:.2f} ({name})" for name, value in slowness.items())
    plans = [Plan(scale, (), {"device": device}) for scale in SCALES]
    rows = [row for plan in plans for row in costs(plan, slowness.get(plan.scale.name, max(slowness.values())), device)]
    formats = {"computing": human_time, "in all": human_time, "disk": human_bytes, "memory": human_bytes}
    lines = [*examine(root, results)]
    lines += ["", f"seconds per gradient, against the machine that the plan was measured on: {slow}"]
    unit = "core" if device == "cpu" else "GPU"
    lines += ["", f"what a scale would cost here, to a factor of two; computing: on one {unit}"]
    return "\n".join([*lines, pd.DataFrame(rows).to_string(index=False, formatters=formats)])
