"""From items and a scale to the de-duplicated list of runs, grouped into jobs: the Snakefile's only source.

Second on the road, after the config; without torch, so that Snakemake can ask it at every start.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from unlocked import budget, config, fingerprint
from unlocked.errors import SettingError, choose
from unlocked.vision import cost

CLAIMS = "claims"  # the third group of items, beside those of the two papers
ENGINES = {
    ("acid", "acid"): "unlocked.gossip.virtual",
    ("acid", "baseline"): "unlocked.gossip.virtual",
    ("acid", "allreduce"): "unlocked.gossip.allreduce",
    ("acid", "processes"): "unlocked.gossip.processes.training",
    ("acid", "quadratic"): "unlocked.gossip.quadratic",
    ("acid", "averaging"): "unlocked.gossip.quadratic",
    ("forward_gradient", "training"): "unlocked.forward_gradient.trainer",
    ("forward_gradient", "estimator_error"): "unlocked.forward_gradient.studies",
    ("forward_gradient", "forward_mode_cost"): "unlocked.forward_gradient.studies",
    ("forward_gradient", "batchnorm_coupling"): "unlocked.forward_gradient.studies",
    ("forward_gradient", "auxiliary_cost"): "unlocked.forward_gradient.studies",
}


@dataclass
class Need:
    """A grid of runs: every key is a setting, every value one value or a list of them."""

    grid: dict[str, Any] = field(default_factory=dict)
    exclude: list[dict[str, Any]] = field(default_factory=list)  # points that agree with all keys of one are left out


@dataclass
class ItemConfig:
    """One entry of `configs/<paper>/items.yaml`."""

    kind: str = "figure"  # figure, table
    title: str = ""
    caption: str = ""
    label: str | None = None  # the paper's own number, e.g. "Figure 5"
    label_checked: bool = False  # whether that number was seen in a source
    build: str = ""  # dotted path of a function (records, context) -> Figure | Table
    note: str = ""  # what a scale changes about it, e.g. which part of the grid it leaves out
    panels: dict[str, list[str]] = field(default_factory=dict)  # of the W&B report: metrics by kind of panel
    needs: list[Need] = field(default_factory=list)  # runs, crossed with the scale's seeds


UNITS = ("ratio", "percentage points", "exponent", "share", "cosine")


@dataclass
class PartConfig:
    """One measurable statement of a claim: an effect, and the side of a threshold on which it should lie."""

    says: str = ""  # what the effect is, in a few words
    unit: str = "ratio"  # one of UNITS
    statistic: str = ""  # a name in `unlocked.claims.STATISTICS`, or the dotted path of such a function
    arguments: dict[str, Any] = field(default_factory=dict)  # of the statistic, e.g. which runs it compares
    above: float | None = None  # the threshold: exactly one of these three
    below: float | None = None
    between: list[float] | None = None  # low and high


@dataclass
class ClaimConfig:
    """One entry of `configs/claims.yaml`: what a paper asserts, as something that can be measured."""

    paper: str = ""
    claim: str = ""  # the sentence
    source: str = ""  # where the paper says so
    conditions: str = ""  # under which it is tested here
    settings: list[str] = field(default_factory=list)  # of the runs, printed with the conditions
    needs: list[Need] = field(default_factory=list)  # runs, crossed with the scale's seeds
    parts: dict[str, PartConfig] = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """A claim with the runs that it is judged by."""

    id: str
    config: ClaimConfig
    runs: dict[str, DictConfig]


@dataclass(frozen=True)
class Item:
    """A table or figure with the runs that it reads."""

    paper: str  # or CLAIMS, for the items that are about both papers' claims
    id: str
    config: ItemConfig
    runs: tuple[str, ...]

    @property
    def name(self) -> str:
        """Unique over both papers, e.g. `acid_figure_5`."""
        return f"{self.paper}_{self.id}"

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Files that the item consists of."""
        return ("pdf", "png", "svg", "csv") if self.config.kind == "figure" else ("md", "tex", "csv")

    def stem(self, figures: Path, scale: str) -> Path:
        """Path of its files without suffix."""
        return figures / scale / self.paper / self.id


@dataclass(frozen=True)
class Batch:
    """Runs that one job trains in one process."""

    paper: str
    id: str
    runs: tuple[str, ...]
    engines: tuple[str, ...]

    @property
    def code(self) -> str:
        """Fingerprint of the code that these runs depend on."""
        return fingerprint.digest(*map(fingerprint.training, self.engines))


def points(need: Need, seeds: Iterable[int]) -> Iterator[dict[str, Any]]:
    """The grid points of a need, seeds innermost."""
    grid = {**need.grid}
    grid.setdefault("seed", list(seeds))
    values = [value if isinstance(value, list) else [value] for value in grid.values()]
    for combination in itertools.product(*values):
        point = dict(zip(grid, combination, strict=True))
        if not any(all(point.get(key) == value for key, value in rule.items()) for rule in need.exclude):
            yield point


def check_part(part: PartConfig, where: str) -> None:
    """A part of a claim must name its unit and exactly one threshold: `SettingError` where it does not."""
    choose(f"{where}.unit", part.unit, UNITS)
    given = [name for name in ("above", "below", "between") if getattr(part, name) is not None]
    if len(given) != 1:
        raise SettingError(where, ", ".join(given) or None, "must have exactly one of above, below, between")
    if part.between is not None and (len(part.between) != 2 or not part.between[0] < part.between[1]):
        raise SettingError(f"{where}.between", part.between, "must be two numbers, the lower one first")


def engine(run: DictConfig) -> str:
    """The module that trains a run."""
    return ENGINES[run.paper, config.kind(run)]


class Plan:
    """Items, runs and batches of a scale, of both papers and the claims: all, or what the items in `only` need."""

    def __init__(
        self,
        scale: str,
        overrides: Iterable[str] = (),
        runtime: dict[str, Any] | None = None,
        only: Iterable[str] | None = None,
    ) -> None:
        self.overrides = tuple(overrides)
        self.scale = config.load_scale(scale, self.overrides)
        self.runtime = {f"runtime.{key}": value for key, value in (runtime or {}).items()}
        self.runs: dict[str, DictConfig] = {}
        self.items: dict[str, Item] = {}
        self.claims: dict[str, Claim] = {}  # those of `configs/claims.yaml`, when an item of theirs is wanted
        self._names: dict[tuple, str] = {}  # of runs, by grid point
        self._bases: dict[str, DictConfig] = {}
        entries = {group: config.read(config.CONFIGS / group / "items.yaml") for group in (*config.RUNS, CLAIMS)}
        known = [f"{group}_{key}" for group in entries for key in entries[group]]
        wanted = known if only is None else [choose("item", name, known) for name in only]
        for group, own in entries.items():
            if keys := [key for key in own if f"{group}_{key}" in wanted]:
                self._read_items(group, own, keys)

    def _read_items(self, group: str, entries: DictConfig, keys: Iterable[str]) -> None:
        changes = self.scale[group]["items"] if group in config.RUNS else {}
        if unknown := sorted(set(changes) - set(entries)):
            raise SettingError(f"{group}.items", unknown[0], f"must be one of {', '.join(entries)}")
        if group in config.RUNS:
            self._base(group)  # refuse a scale that cannot work, even for items that train nothing
        shared = self._read_claims() if group == CLAIMS else ()
        for key in keys:
            where = f"configs/{group}/items.yaml: {key}"
            values = self._resolved(ItemConfig, entries[key], changes.get(key, {}), where=where)
            item = ItemConfig(**values)
            choose(f"{where}.kind", item.kind, ("figure", "table"))
            runs = tuple(dict.fromkeys([*shared, *self._add_runs(group, item.needs)]))
            self.items[f"{group}_{key}"] = Item(group, str(key), item, runs)

    def _read_claims(self) -> list[str]:
        """Fill `claims`; returns the runs that they need."""
        for key, entry in config.read(config.CONFIGS / "claims.yaml").items():
            where = f"configs/claims.yaml: {key}"
            values = self._resolved(ClaimConfig, entry, where=where)
            parts = {name: PartConfig(**part) for name, part in values["parts"].items()}
            claim = ClaimConfig(**values | {"parts": parts})
            choose(f"{where}.paper", claim.paper, config.RUNS)
            for name, part in parts.items():
                check_part(part, f"{where}.parts.{name}")
            runs = {name: self.runs[name] for name in self._add_runs(claim.paper, claim.needs)}
            self.claims[str(key)] = Claim(str(key), claim, runs)
        return [name for claim in self.claims.values() for name in claim.runs]

    def _resolved(self, schema: type, *parts: Any, where: str) -> dict[str, Any]:
        """An entry as plain values, its references to the scale resolved, its `needs` read."""
        merged = config.merge(OmegaConf.structured(schema), *parts, where=where)
        # entries refer to the scale: give them a root that knows it
        rooted = config.complete(OmegaConf.create({"scale": self.scale, "entry": merged}))
        container = OmegaConf.to_container(rooted)
        assert isinstance(container, dict)
        values = container["entry"]
        return values | {"needs": [Need(**need) for need in values["needs"]]}

    def _base(self, paper: str) -> DictConfig:
        """A paper's runs before an item's grid is applied."""
        if paper not in self._bases:
            base = config.complete(config.defaults(paper, self.scale))
            config.validate_values(base)
            self._bases[paper] = base
        return self._bases[paper]

    def _add_runs(self, paper: str, needs: Iterable[Need]) -> Iterator[str]:
        for need in needs:
            base = self._base(paper)
            for point in points(need, self.scale.seeds):
                key = (paper, *sorted((name, str(value)) for name, value in point.items()))
                if key not in self._names:  # resolving takes milliseconds, and items share most of their points
                    run = config.resolve(base, {**self.runtime, **point})
                    self._names[key] = config.run_id(run)
                    self.runs.setdefault(self._names[key], run)
                yield self._names[key]

    def item(self, name: str) -> Item:
        """The item called e.g. `acid_figure_5`."""
        return self.items[choose("item", name, self.items)]

    @cached_property
    def batches(self) -> dict[str, Batch]:
        """Jobs of about equal cost. No job mixes engines, or runs that are wanted by different sets of items:
        building one item of a paper trains what it needs and no more. The claims, which read a little of everything,
        do not cut jobs into smaller ones.
        """
        wanted_by: dict[str, list[str]] = {}
        for item in (item for item in self.items.values() if item.paper != CLAIMS):
            for name in item.runs:
                wanted_by.setdefault(name, []).append(item.name)
        groups: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}
        for name, run in self.runs.items():
            groups.setdefault((run.paper, engine(run), tuple(wanted_by.get(name, ()))), []).append(name)
        result: dict[str, Batch] = {}
        for (paper, module, _), names in groups.items():
            for members in deal(names, self.scale.runs_per_job, [estimate(self.runs[n]).seconds for n in names]):
                key = fingerprint.digest(*members)[:8]
                result[key] = Batch(paper, key, tuple(members), (module,))
        return result

    def batches_of(self, item: Item) -> list[str]:
        """Jobs that an item waits for."""
        wanted = set(item.runs)
        return [key for key, batch in self.batches.items() if wanted & set(batch.runs)]

    def items_of(self, batch: Batch) -> list[str]:
        """Items that wait for a job, the one with the fewest runs first."""
        waiting = [item for item in self.items.values() if set(batch.runs) & set(item.runs)]
        return [item.name for item in sorted(waiting, key=lambda item: len(item.runs))]

    def data_sets(self) -> list[str]:
        """Names of all data sets that runs read."""
        return sorted({run.data.name for run in self.runs.values() if budget.has_data(run)})

    def describe(self, paper: str | None = None) -> dict[str, Any]:
        """The whole plan as plain values: items, runs with their cost, totals."""
        runs = {name: run for name, run in self.runs.items() if paper in (None, run.paper)}
        costs = {name: estimate(run) for name, run in runs.items()}
        return {
            "scale": self.scale.name,
            "about": self.scale.about,
            "items": [
                {"name": i.name, "kind": i.config.kind, "label": i.config.label, "title": i.config.title,
                 "runs": list(i.runs)}
                for i in self.items.values() if paper in (None, i.paper)
            ],
            "runs": [
                {"id": name, "paper": runs[name].paper, "settings": config.identity(runs[name]), **vars(costs[name])}
                for name in runs
            ],
            "total": {
                "items": sum(paper in (None, i.paper) for i in self.items.values()),
                "runs": len(runs),
                "gradients": sum(c.gradients for c in costs.values()),
                "seconds": round(sum(c.seconds for c in costs.values()), 1),
                "memory_mb": max((c.memory_mb for c in costs.values()), default=0),
            },
        }  # fmt: skip


def deal(names: list[str], most: int, costs: list[float]) -> list[list[str]]:
    """Cut `names` into groups of at most `most`, the expensive ones spread over the groups, order kept inside."""
    count = -(-len(names) // most)
    groups: list[list[int]] = [[] for _ in range(count)]
    for index in sorted(range(len(names)), key=lambda k: (-costs[k], k)):
        open_groups = [g for g in groups if len(g) < most]
        min(open_groups, key=lambda g: sum(costs[k] for k in g)).append(index)
    return [[names[k] for k in sorted(group)] for group in groups if group]


@dataclass(frozen=True)
class Estimate:
    """What a run is expected to cost. A guide for schedulers and readers, good to a factor of about two."""

    gradients: int
    seconds: float
    memory_mb: int


# Sustained training throughput in multiply-accumulates per second and fixed cost per gradient in seconds, for one CPU
# core (measured with the small nets here and ResNet-18 at width 1) and for one data-centre GPU (float32 with TF32,
# assumed; not measured).
THROUGHPUT = {"cpu": 2.0e10, "cuda": 1.5e13}
OVERHEAD = {"cpu": 4.0e-4, "cuda": 4.0e-3}
STUDY_EVENT = 3.0e-5  # seconds per event of a study without a network


# Paper B: an estimate's time by (space, guess), backpropagation's being 1, without auxiliary nets; measured on one core
# with the 8-block net at width 1/2. `local`: guesses that come from auxiliary nets. A global target costs a way back.
FACTORS = {
    ("activity", "random"): 1.0,
    ("activity", "local"): 1.05,
    ("weight", "random"): 0.9,
    ("weight", "local"): 1.4,
    ("weight_per_sample", "random"): 2.8,
    ("weight_per_sample", "local"): 3.8,
}
LOCAL_TARGET = 0.75  # of the time with a global target
FORWARD_MODE = 2.0  # of the time by projection, per Jacobian-vector product that goes through the whole net
PER_BLOCK = {"cpu": 2.5e-3, "cuda": 1.5e-3}  # seconds per step and block that do not depend on the width


def estimate(run: DictConfig) -> Estimate:
    """Gradients, seconds and memory of a run, from the network's size and the budget."""
    return ESTIMATES[run.paper](run)


def image_bytes(run: DictConfig) -> int:
    """Memory of a data set that is kept in memory."""
    data = config.DATASETS[run.data.name]
    if run.data.name == "imagenet":
        return 0  # read from disk batch by batch
    return (budget.train_size(run) + data.test) * data.channels * (run.data.size or data.size) ** 2


def estimate_forward_gradient(run: DictConfig) -> Estimate:
    """Of a run of paper B: the blocks' passes by `FACTORS`, and three forward passes of every auxiliary net."""
    data = config.DATASETS[run.data.name]
    network = cost.count_blocks(
        run.model.name, run.auxiliary, classes=data.classes, channels=data.channels, size=run.data.size or data.size,
        width=run.model.width,
    )  # fmt: skip
    device = "cuda" if run.runtime.device.startswith("cuda") else "cpu"
    steps = estimates_of(run)
    macs = 3 * network.net.forward_macs * factor(run) + 3 * network.heads.forward_macs
    each = PER_BLOCK[device] * len(network.blocks) + macs * run.optim.batch_size / THROUGHPUT[device]
    floats = 4 * (network.net.parameters + network.heads.parameters)  # weights, gradients, guess, SGD buffer
    floats += (network.net.activations + network.heads.activations) * run.optim.batch_size
    if run.space == "weight" and not run.averaged:
        floats += 3 * max(block.parameters for block in network.blocks) * run.optim.batch_size
    memory = 600 + round((4 * floats + image_bytes(run)) / 2**20)
    return Estimate(steps, round(steps * each, 1), memory)


def estimates_of(run: DictConfig) -> int:
    """Gradient estimates of a run of paper B; for a measurement on a fresh net, its cases, roughly."""
    return budget.total_gradients(run) if run.study in ("training", "estimator_error") else 24


def factor(run: DictConfig) -> float:
    """Time of an estimate's passes through the blocks, backpropagation's being 1."""
    if run.target == run.guess:
        return LOCAL_TARGET if run.target == "local" else 1.0
    space = run.space if run.averaged or run.space == "activity" else "weight_per_sample"
    found = FACTORS[space, "random" if run.guess == "random" else "local"] * run.tangents
    found *= LOCAL_TARGET if run.target == "local" else 1.0
    if run.mode == "forward_mode":
        # one product per block, half of the net on average; per sample with batch statistics one per sample
        samples = 1 if run.averaged or run.norm == "group" else run.optim.batch_size
        found += FORWARD_MODE * cost.BLOCK_COUNT[run.model.name] / 2 * samples
    return found


def estimate_acid(run: DictConfig) -> Estimate:
    """Of a run of paper A."""
    if not budget.has_data(run):
        events = run.quadratic.horizon * run.workers * ((run.study == "quadratic") + run.rate / 2)
        return Estimate(budget.total_gradients(run), round(events * STUDY_EVENT, 1), 600)
    data = config.DATASETS[run.data.name]
    network = cost.count(
        run.model.name, classes=data.classes, channels=data.channels, size=run.data.size or data.size,
        width=run.model.width,
    )  # fmt: skip
    device = "cuda" if run.runtime.device.startswith("cuda") else "cpu"
    gradients = budget.total_gradients(run)
    # a backward pass costs two forwards
    seconds = gradients * (OVERHEAD[device] + 3 * network.forward_macs * run.optim.batch_size / THROUGHPUT[device])
    workers = OmegaConf.select(run, "workers") or 1
    vectors = 3 * workers + 2  # x, its twin and the SGD buffer per worker; a gradient and the average
    bytes_needed = 4 * (vectors * network.parameters + network.activations * run.optim.batch_size) + image_bytes(run)
    return Estimate(gradients, round(seconds, 1), 600 + round(bytes_needed / 2**20))


ESTIMATES = {"acid": estimate_acid, "forward_gradient": estimate_forward_gradient}
