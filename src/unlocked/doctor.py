"""`unlocked doctor`: what this machine can run, what is missing and how to get it, and what each scale would cost here.

Beside the road: reads the lock, the machine and the plan, trains nothing, writes nothing. Costs are the plan's
estimates times what a short measurement of this machine takes against what the estimates assume.
"""

from __future__ import annotations

import functools
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

from unlocked import config, plan, resources
from unlocked.errors import DataError
from unlocked.units import human_bytes, human_time
from unlocked.vision import cost, data, models
from unlocked.vision.catalogue import DATASETS
from unlocked.workflow import existing_part

PACKAGES = ("torch", "torchvision", "snakemake", "wandb", "snakemake-executor-plugin-slurm")
OPTIONAL = ("snakemake-executor-plugin-slurm",)
SCALES = ("quick", "reduced", "paper")
FREE_GB = 10  # the environment alone takes 6
RECORD_MB = 0.1  # of a finished run, its offline W&B run included
SECONDS = 1.5  # of each measurement
# What is measured, (net, data set, pixels, batch): one gradient that is all overhead, and one that is all arithmetic.
CALIBRATION = {"quick": ("mlp", "digits", 8, 8), "reduced": ("conv", "fashion_mnist", 14, 64)}
REFERENCE = {"quick": 1.4e-4, "reduced": 4.9e-3}  # its seconds on the core that the plan's constants were measured on


@dataclass(frozen=True)
class Finding:
    """One line of the examination; `advice` marks a problem and says what to do."""

    topic: str
    text: str
    advice: str = ""


def examine(root: Path, results: Path) -> list[Finding]:
    """Everything about this machine that the workflow depends on."""
    parts: list[Callable[[], Iterator[Finding]]] = [
        versions, devices, functools.partial(data_sets, root), tracking, slurm, functools.partial(storage, results),
    ]  # fmt: skip
    return [finding for part in parts for finding in part()]


def versions() -> Iterator[Finding]:
    """Python and the packages that matter, against the lock."""
    tested = (3, 11) <= sys.version_info[:2] <= (3, 13)
    yield Finding("python", platform.python_version(), "" if tested else "use Python 3.11 to 3.13")
    locked = dict(re.findall(r"^([\w.-]+)==([\w.]+)", (config.ROOT / "requirements.lock").read_text(), re.MULTILINE))
    for name in PACKAGES:
        yield version(name, locked.get(name))


def version(name: str, locked: str | None) -> Finding:
    """One package: installed, and as in the lock?"""
    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        where = "needed on a cluster only: " if name in OPTIONAL else ""
        return Finding(name, "not installed", f"{where}pip install {name}{f'=={locked}' if locked else ''}")
    if locked in (None, found.partition("+")[0]):
        return Finding(name, found)
    return Finding(name, found, f"the lock has {locked}: numbers may differ in the last digits")


def devices() -> Iterator[Finding]:
    """Cores, memory, GPUs."""
    memory = psutil.virtual_memory()
    yield Finding("cores", f"{usable_cores()} usable of {os.cpu_count()}")
    yield Finding("memory", f"{human_bytes(memory.total)}, {human_bytes(memory.available)} free")
    if not torch.cuda.is_available():
        yield Finding("gpu", "none that torch can use: the quick and reduced scales run without")
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        yield Finding("gpu", f"cuda:{index} {found.name}, {human_bytes(found.total_memory)}")


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def data_sets(root: Path) -> Iterator[Finding]:
    """Every data set that a scale reads: where it is, or how to get it. Nothing is downloaded or verified."""
    for name in DATASETS:
        try:
            found = data.load(name, root, download=False, verify=False)
            yield Finding(f"data {name}", found.source)
        except DataError as error:
            yield Finding(f"data {name}", "not found", " ".join(str(error).split()))


def tracking() -> Iterator[Finding]:
    """Weights & Biases: what it would do."""
    key = os.environ.get("WANDB_API_KEY") or "wandb" in netrc_text()
    text = "a key is set: --config wandb=online mirrors runs to the server" if key else "no key"
    yield Finding("wandb", f"offline unless asked otherwise; {text}")


def netrc_text() -> str:
    """The file in which `wandb login` leaves its key, empty if there is none."""
    try:
        return (Path.home() / ".netrc").read_text()
    except OSError:
        return ""


def slurm() -> Iterator[Finding]:
    """Whether jobs can be submitted from here."""
    if shutil.which("sbatch") is None:
        yield Finding("slurm", "not found: everything runs on this machine")
        return
    try:
        done = subprocess.run(["sinfo", "--noheader"], capture_output=True, text=True, timeout=20)
        answer = done.stdout.strip().splitlines()[:1] if done.returncode == 0 else []
    except (OSError, subprocess.TimeoutExpired):
        answer = []
    if answer:
        yield Finding("slurm", f"{answer[0].split()[0]}: see docs/cluster.md")
    else:
        yield Finding("slurm", "installed, does not answer", "start slurmctld, or ask the cluster's administrators")


def storage(results: Path) -> Iterator[Finding]:
    """Whether results can be written, and how much fits."""
    place = existing_part(results)
    free = shutil.disk_usage(place).free
    yield Finding("disk", f"{human_bytes(free)} free", f"free {FREE_GB} GB" if free < FREE_GB * 1e9 else "")
    writable = os.access(place, os.W_OK)
    yield Finding(
        "results", f"{results}", "" if writable else f"{place} cannot be written: choose --config results=..."
    )


# what it costs


def measured_slowness(device: str) -> dict[str, float]:
    """Seconds per gradient here over the seconds where the plan was measured, by the scale that the net stands for."""
    return {
        name: gradient_seconds(*net, device) / (assumed_seconds(*net) if is_gpu(device) else REFERENCE[name])
        for name, net in CALIBRATION.items()
    }


def is_gpu(device: str) -> bool:
    """Whether a device is a GPU."""
    return device.startswith("cuda")


def gradient_seconds(name: str, dataset: str, size: int, batch: int, device: str) -> float:
    """The shortest time of a gradient with one thread, over `SECONDS` of them."""
    described = DATASETS[dataset]
    net = models.build(name, classes=described.classes, channels=described.channels, size=size, seed=0).to(device)
    images = torch.zeros(batch, described.channels, size, size, device=device)
    labels = torch.zeros(batch, dtype=torch.long, device=device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return min(timed(lambda: step(net, images, labels), device))
    finally:
        torch.set_num_threads(threads)


def timed(call: Callable[[], None], device: str) -> list[float]:
    """Durations of repeated calls, the first two left out: of a core only what it spends on us."""
    clock = time.perf_counter if is_gpu(device) else time.process_time
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(times) < 5 or time.perf_counter() < end:
        started = clock()
        call()
        if is_gpu(device):
            torch.cuda.synchronize()
        times.append(clock() - started)
    return times[2:]


def step(net: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    """One gradient."""
    net.zero_grad()
    torch.nn.functional.cross_entropy(net(images), labels).backward()


def assumed_seconds(name: str, dataset: str, size: int, batch: int) -> float:
    """The same gradient on a GPU by the plan's estimate, which was not measured."""
    described = DATASETS[dataset]
    counted = cost.count(name, classes=described.classes, channels=described.channels, size=size)
    return plan.OVERHEAD["cuda"] + 3 * counted.forward_macs * batch / plan.THROUGHPUT["cuda"]


def costs(slowness: dict[str, float], device: str) -> list[dict[str, Any]]:
    """What every scale and paper would cost on this machine: hours, disk, memory."""
    rows = []
    for scale in SCALES:
        factor = slowness.get(scale, max(slowness.values()))
        whole = plan.Plan(scale, (), {"device": device})
        rows += [{"scale": scale, "paper": paper, **cost_of(whole, paper, factor, device)} for paper in config.PAPERS]
    return rows


def cost_of(whole: plan.Plan, paper: str, factor: float, device: str) -> dict[str, Any]:
    """Of one paper at one scale. Wall time: all cores, or the one GPU that torch uses, busy; no less than a job's."""
    jobs = [[whole.runs[name] for name in batch.runs] for batch in whole.batches.values() if batch.paper == paper]
    seconds = [factor * sum(plan.estimate(run).seconds for run in job) for job in jobs]
    at_once = 1 if is_gpu(device) else usable_cores()
    largest = max((plan.estimate(run).memory_mb for job in jobs for run in job), default=0)
    return {
        "runs": sum(map(len, jobs)),
        "hours": sum(seconds) / 3600,  # of a core or a GPU
        "wall_hours": max(sum(seconds) / at_once, max(seconds, default=0)) / 3600,
        "disk_mb": RECORD_MB * sum(map(len, jobs)) + at_once * largest,  # records, and a checkpoint per running job
        "memory_mb": at_once * largest,
        "job": asdict(resources.most(resources.of_job(job) for job in jobs)),
    }


def diagnose(root: Path, results: Path) -> dict[str, Any]:
    """The whole examination as plain values."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    slowness = measured_slowness(device)
    return {
        "findings": [asdict(finding) for finding in examine(root, results)],
        "device": device,
        "slowness": {name: round(value, 3) for name, value in slowness.items()},
        "costs": costs(slowness, device),
    }


def as_text(found: dict[str, Any]) -> str:
    """The examination for a person: one line per finding, problems marked, then the costs."""
    lines = []
    for finding in found["findings"]:
        advice = f": {finding['advice']}" if finding["advice"] else ""
        lines.append(f"{'!' if advice else ' '} {finding['topic']:<32} {finding['text']}{advice}")
    unit = "GPU" if is_gpu(found["device"]) else "core"
    slow = ", ".join(f"{value:.2f} ({name})" for name, value in found["slowness"].items())
    lines += ["", f"seconds per gradient, against the machine that the plan was measured on: {slow}", ""]
    lines += [f"what a scale would cost here, to a factor of two ({unit} hours; wall time with {usable_cores()} cores)"]
    for row in found["costs"]:
        hours, wall = human_time(row["hours"] * 3600), human_time(row["wall_hours"] * 3600)
        size, memory = human_bytes(row["disk_mb"] * 1e6), human_bytes(row["memory_mb"] * 1e6)
        lines.append(
            f"  {row['scale']:<8} {row['paper']:<17} {row['runs']:>5} runs  {hours:>8} of a {unit}, {wall:>8} in all, "
            f"{size:>7} of disk, {memory:>7} of memory"
        )
    return "\n".join(lines)
