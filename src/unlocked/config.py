"""Every setting of a run: structured, documented, merged, validated, and turned into an id.

First on the road; without torch. A run's config is merged from four places, later ones winning: the defaults here,
`configs/<paper>/training.yaml` (the paper's settings), the `training` part of `configs/scales/<scale>.yaml`, and one
point of an item's grid.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from unlocked import budget
from unlocked.budget import total_gradients, train_size
from unlocked.errors import SettingError, choose
from unlocked.gossip import clock as clocks
from unlocked.gossip import topology
from unlocked.gossip.clock import Clock
from unlocked.gossip.momentum import DYNAMICS
from unlocked.vision import cost
from unlocked.vision.catalogue import DATASETS

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
PAPERS = ("acid", "forward_gradient")


@dataclass
class Data:
    """What is learned, and which worker sees what."""

    name: str = "cifar10"  # digits, fashion_mnist, cifar10, cifar100, imagenet32, imagenet
    size: int | None = None  # images are resized to this many pixels once, when loaded; null: as they are
    train_limit: int | None = None  # a fixed random subset of this many training images; null: all
    test_limit: int | None = None  # the same for test images
    augmentation: str | None = None  # crop_flip, crop, none; null: the data set's own
    partition: str = "iid"  # iid: every worker draws from the whole set; dirichlet; label_sorted
    concentration: float = 0.3  # of the Dirichlet partition: smaller is more heterogeneous


@dataclass
class Model:
    """The network."""

    # acid: mlp, conv, resnet18, resnet50; forward_gradient: resnet18_8, resnet18_16 (no skips), resnet18_2, by blocks
    name: str = "resnet18"
    width: float = 1.0  # factor on the number of channels


@dataclass
class Optim:
    """Stochastic gradient descent and its schedule."""

    lr: float = 0.1  # base learning rate, before the schedule's factor
    momentum: float = 0.9  # of the SGD buffer (not the gossip momentum)
    weight_decay: float = 5e-4  # acid: not of parameters with one dimension; forward_gradient: of all, as plain SGD
    batch_size: int = 128  # per worker
    epochs: float = 300  # the run stops after epochs * floor(N / batch) gradients over all workers
    schedule: str = "large_batch"  # large_batch (Goyal et al. 2017), step, constant
    warmup_epochs: float = 5  # large_batch: linear warm-up to batch * workers / 256
    milestones: list[float] = field(default_factory=lambda: [0.5, 0.75])  # large_batch: x 0.1 at these fractions
    step_every: int = 30  # step: epochs between two reductions
    step_gamma: float = 0.2  # step: factor of each reduction


@dataclass
class Evaluation:
    """What is measured, how often."""

    points: int = 20  # evaluations of the averaged model, evenly spaced, besides the start
    workers: str = "final"  # test accuracy of every single worker: final, always, never
    recalibration_batches: int = 50  # BatchNorm statistics of the averaged model: training batches in the pass
    train_limit: int = 10_000  # training images on which the averaged model's loss is measured


@dataclass
class Runtime:
    """Where and how a run is executed. Not part of the run's identity: the same run on another device has its id."""

    device: str = "cpu"  # cpu, cuda, cuda:1, ...
    threads: int = 1  # CPU threads of torch
    data_root: str = "data"  # folder of the data sets
    execution: str = "auto"  # events of a gossip run: auto, loop (levels, one worker at a time), batched, one_by_one
    precision: str = "float32"  # forward_gradient, a training's blocks: float32, bfloat16 (autocast)
    channels_last: bool = False  # forward_gradient: memory layout of nets and images; faster on GPUs
    compile: bool = False  # forward_gradient: torch.compile of the blocks; needs a C++ compiler
    checkpoint_minutes: float = 5  # time between checkpoints
    wandb: str = "offline"  # offline, online, disabled
    wandb_project: str = "unlocked"
    wandb_entity: str | None = None
    reuse: str = "same_code"  # a complete record is kept if config and code agree (same_code), or config (same_config)
    verify_data: bool = True  # check the published checksums of downloaded data sets
    timeout: float = 60  # engine processes: seconds without a word after which a worker is given up
    interface: str = "lo"  # engine processes: network interface on which workers talk; lo: this machine alone
    backend: str = "gloo"  # engine processes: gloo; nccl: every worker must have a GPU of its own


@dataclass
class Run:
    """What every run has."""

    paper: str = MISSING
    scale: str = MISSING
    seed: int = 0
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    optim: Optim = field(default_factory=Optim)
    evaluation: Evaluation = field(default_factory=Evaluation)
    runtime: Runtime = field(default_factory=Runtime)


@dataclass
class Quadratic:
    """The problem of the studies without a network: see `gossip.quadratic`."""

    dimension: int = 50  # coordinates of every worker's vector
    noise: float = 1.0  # standard deviation of a gradient's noise per coordinate
    heterogeneous: bool = False  # whether workers have optima of their own
    horizon: float = 1000  # length of the run in gradient times


@dataclass
class AcidRun(Run):
    """One training of paper A, or one of its studies without a network."""

    paper: str = "acid"
    study: str = "training"  # training; quadratic: a written-down problem; averaging: no gradients at all
    engine: str = "virtual"  # virtual: all workers in one process, in virtual time; processes: one process per worker
    method: str = "acid"  # acid: gossip with momentum; baseline: gossip without; allreduce: synchronous
    graph: str = "ring"  # ring, complete, exponential, star, torus, hypercube, path, erdos_renyi
    workers: int = 64
    rate: float = 1.0  # communications per worker and gradient
    pairing: str = "poisson"  # law of the communications: poisson (theory), availability (what a machine does)
    owed: str = "poisson"  # availability: communications that a gradient makes due: poisson, deterministic
    dynamics: str = "exact"  # exact: as in the paper; released: as in the code released with it
    gradient_read: str = "event"  # x that a gradient is taken at: event (theory), start (of its computation)
    init: str = "common"  # common: one draw for all workers; mean_of_independent: as in the released code
    batch_norm: str = "recalibrate"  # statistics of the averaged model: recalibrate, average, worker0
    clock: Clock = field(default_factory=Clock)
    quadratic: Quadratic = field(default_factory=Quadratic)


@dataclass
class Measure:
    """What is measured of the estimates at every evaluation of a run of paper B, besides accuracy and loss."""

    batches: int = 2  # fixed batches on which target, guess and true gradient are compared; 0: none
    batch_size: int = 128  # samples in each of them
    tensors: bool = False  # cosine, norm ratio and coefficient also of every single parameter tensor


@dataclass
class ForwardGradientRun(Run):
    """One training of paper B, or one of its measurements that train nothing."""

    paper: str = "forward_gradient"
    # training; or a measurement: estimator_error, forward_mode_cost, batchnorm_coupling, auxiliary_cost
    study: str = "training"
    norm: str = "batch"  # normalisation of blocks and auxiliary nets: batch; group: samples do not interact
    auxiliary: str = "cnn"  # nets that give blocks a loss: cnn, mlp, linear, copy (of the blocks that follow)
    target: str = "global"  # gradient to follow: global (of the net's loss), local (of the block's own loss)
    # direction on which the target is projected: random, local, ntk, fixed_ntk; global: the target itself, which is
    # backpropagation; target and guess local is local learning
    guess: str = "local"
    space: str = "activity"  # where target and guess live: activity (a block's output), weight
    averaged: bool | None = None  # one coefficient per tensor, not per sample; null: in the space weight
    distribution: str = "gaussian"  # of random guesses: gaussian, rademacher
    tangents: int = 1  # random guesses per step, averaged; estimator_error: the most that it averages
    mode: str = "projection"  # how <target, guess> is found: projection (backpropagates the target), forward_mode (JVP)
    per_sample_method: str = "auto"  # forward_mode, per sample: tangents (always right), one_pass, auto (the right one)
    # BatchNorm at test time: running (averages kept in training, as the paper), recalibrate (averages over
    # evaluation.recalibration_batches at the weights that are tested: short runs change faster than running averages)
    test_statistics: str = "running"
    measure: Measure = field(default_factory=Measure)


RUNS: dict[str, type[Run]] = {"acid": AcidRun, "forward_gradient": ForwardGradientRun}
STUDIES = {
    "acid": ("training", "quadratic", "averaging"),
    "forward_gradient": ("training", "estimator_error", "forward_mode_cost", "batchnorm_coupling", "auxiliary_cost"),
}
NETWORKS = {
    "acid": ("mlp", "conv", "resnet18", "resnet50"),
    "forward_gradient": ("resnet18_8", "resnet18_16", "resnet18_2"),
}
METHODS = ("acid", "baseline", "allreduce")
CHOICES: dict[str, tuple[str, ...]] = {
    "engine": ("virtual", "processes"),
    "method": METHODS,
    "graph": tuple(topology.GRAPHS),
    "dynamics": DYNAMICS,
    "pairing": ("poisson", "availability"),
    "owed": ("poisson", "deterministic"),
    "gradient_read": ("event", "start"),
    "init": ("common", "mean_of_independent"),
    "batch_norm": ("recalibrate", "average", "worker0"),
    "data.partition": ("iid", "dirichlet", "label_sorted"),
    "data.augmentation": ("crop_flip", "crop", "none"),
    "norm": ("batch", "group"),
    "auxiliary": ("cnn", "mlp", "linear", "copy"),
    "target": ("global", "local"),
    "guess": ("random", "local", "ntk", "fixed_ntk", "global"),
    "space": ("weight", "activity"),
    "distribution": ("gaussian", "rademacher"),
    "mode": ("projection", "forward_mode"),
    "test_statistics": ("running", "recalibrate"),
    "per_sample_method": ("auto", "one_pass", "tangents"),
    "optim.schedule": ("large_batch", "step", "constant"),
    "evaluation.workers": ("final", "always", "never"),
    "runtime.backend": ("gloo", "nccl"),
    "runtime.precision": ("float32", "bfloat16"),
    "runtime.execution": ("auto", "loop", "batched", "one_by_one"),
    "runtime.wandb": ("offline", "online", "disabled"),
    "runtime.reuse": ("same_code", "same_config"),
}
POSITIVE = (
    "workers",
    "rate",
    "data.size",
    "data.train_limit",
    "data.test_limit",
    "data.concentration",
    "model.width",
    "optim.lr",
    "optim.batch_size",
    "optim.epochs",
    "optim.step_every",
    "evaluation.points",
    "evaluation.recalibration_batches",
    "evaluation.train_limit",
    "quadratic.dimension",
    "quadratic.horizon",
    "runtime.threads",
    "runtime.timeout",
    "tangents",
    "measure.batch_size",
)
NOT_NEGATIVE = ("seed", "quadratic.noise", "optim.momentum", "optim.weight_decay", "optim.warmup_epochs")
NOT_NEGATIVE += ("runtime.checkpoint_minutes", "measure.batches")


def one_line(error: Exception) -> str:
    """The first line of an OmegaConf error, which says what is wrong; the others repeat where."""
    return str(error).strip().splitlines()[0]


def merge(base: Any, *parts: Any, where: str) -> DictConfig:
    """OmegaConf's merge whose errors (unknown key, wrong type) become one `SettingError` line."""
    try:
        return OmegaConf.merge(base, *parts)
    except OmegaConfBaseException as error:
        key = str(getattr(error, "full_key", None) or getattr(error, "key", None) or "config")
        values = [OmegaConf.select(OmegaConf.create(part), key, default=None) for part in parts]
        given = next((value for value in reversed(values) if value is not None), None)
        raise SettingError(f"{where}: {key}", given, one_line(error)) from None


def read(path: Path) -> DictConfig:
    """A YAML file; `SettingError` with the parser's line if it cannot be read."""
    try:
        return OmegaConf.load(path)
    except Exception as error:
        raise SettingError("config file", str(path), " ".join(str(error).split())) from None


def from_dotlist(overrides: Iterable[str]) -> DictConfig:
    """`["seeds=[0]", "acid.training.optim.lr=0.05"]` as a config; `SettingError` for one that has no `=`."""
    overrides = list(overrides)
    for text in overrides:
        if "=" not in text:
            raise SettingError("override", text, "must look like key=value, e.g. acid.training.optim.lr=0.05")
    result = OmegaConf.create()
    for text in overrides:
        try:
            result = OmegaConf.merge(result, OmegaConf.from_dotlist([text]))
        except Exception as error:
            raise SettingError("override", text, " ".join(str(error).split())) from None
    return result


def scale_names() -> list[str]:
    """The scales that have a file."""
    return sorted(path.stem for path in (CONFIGS / "scales").glob("*.yaml"))


@dataclass
class Large:
    """What stands in place of ImageNet(32); a scale without a second data set takes the first with a larger net."""

    data: str = "imagenet32"
    width: float = 1.0
    auxiliaries: list[str] = field(default_factory=lambda: ["cnn", "mlp", "linear"])
    guesses: list[str] = field(default_factory=lambda: ["ntk", "fixed_ntk", "local"])
    size: int | None = None  # pixels to which the images are resized
    model: str = "resnet50"  # paper A's network
    workers: list[int] = field(default_factory=lambda: [16, 32, 64])  # paper A's numbers of workers
    most_workers: int = 64  # the largest of them
    epochs: float = 90  # paper A's budget
    # paper A's steps of the learning rate; one value, in a list of its own so that a grid does not cross it
    milestones: list[list[float]] = field(default_factory=lambda: [[0.3, 0.6, 0.8]])


@dataclass
class PaperScale:
    """A scale's values for one paper. Items refer to them as `${scale.<paper>.<key>}`."""

    about: str = ""  # in place of the scale's own, in captions
    workers: list[int] = field(default_factory=list)  # numbers of workers in tables and figures
    largest: int = 64  # the number of workers of items that have one
    plain_lr: float = 0.1  # learning rate of runs without SGD momentum
    rates: list[float] = field(default_factory=lambda: [1.0, 2.0, 4.0])  # the baseline's, to compare the momentum with
    partitions: list[str] = field(default_factory=lambda: ["iid", "dirichlet", "label_sorted"])  # where it helps
    straggler_workers: int = 16  # workers of the item on stragglers
    variations: list[float] = field(default_factory=lambda: [0.1, 0.5, 1.0])  # spreads of gradient times there
    slow_factors: list[float] = field(default_factory=lambda: [2.0, 4.0])  # and slowdowns of one worker
    horizon: float = 1000  # gradient times of the studies without a network
    engine_workers: int = 4  # of the item that runs both engines
    engine_epochs: float = 1.0  # its budget
    # and a factor on the real processes' gradient times, by sleeping: workers that have no core each would compete
    engine_stretch: float = 1.0
    auxiliary: str = "cnn"  # auxiliary nets of items that have one kind
    auxiliaries: list[str] = field(default_factory=lambda: ["cnn", "mlp", "linear"])  # of the tables of accuracy
    widths: list[float] = field(default_factory=lambda: [0.25, 0.5, 1.0])  # of the net, in the items on width and error
    cost_width: float = 1.0  # of the net whose forward mode is timed
    tangents: int = 64  # most random guesses that are averaged in the item on the estimator's error
    large: Large = field(default_factory=Large)  # what stands in ImageNet32's place
    training: dict[str, Any] = field(default_factory=dict)  # settings of a run that differ from the paper's
    items: dict[str, Any] = field(default_factory=dict)  # changes to single items at this scale


@dataclass
class Scale:
    """`configs/scales/<name>.yaml`."""

    name: str = MISSING
    about: str = ""  # one line for captions and reports
    seeds: list[int] = field(default_factory=lambda: [0])
    runs_per_job: int = 1  # runs that one job trains in one process
    acid: PaperScale = field(default_factory=PaperScale)
    forward_gradient: PaperScale = field(default_factory=PaperScale)


def load_scale(name: str, overrides: Iterable[str] = ()) -> DictConfig:
    """The scale `name` with `overrides` (paths in its file, `key=value`) applied."""
    path = CONFIGS / "scales" / f"{choose('scale', name, scale_names())}.yaml"
    scale = merge(OmegaConf.structured(Scale), read(path), {"name": name}, where=f"scale {name}")
    scale = merge(scale, from_dotlist(overrides), where="override")
    if not scale.seeds:
        raise SettingError("seeds", [], "must hold at least one seed")
    if scale.runs_per_job < 1:
        raise SettingError("runs_per_job", scale.runs_per_job, "must be at least 1")
    return scale


def defaults(paper: str, scale: DictConfig) -> DictConfig:
    """The run config of `paper` at `scale`, before an item's grid is applied."""
    base = OmegaConf.structured(RUNS[choose("paper", paper, RUNS)])
    base = merge(base, read(CONFIGS / paper / "training.yaml"), where=f"configs/{paper}/training.yaml")
    return merge(base, scale[paper].training, {"scale": scale.name}, where=f"scale {scale.name}, {paper}.training")


def resolve(base: DictConfig, point: Mapping[str, Any]) -> DictConfig:
    """`base` with one grid point (`{"workers": 16, "data.partition": "dirichlet"}`), canonical and validated."""
    run = base.copy()
    for key, value in point.items():
        try:
            OmegaConf.update(run, key, value, merge=True)
        except OmegaConfBaseException as error:
            raise SettingError(key, value, one_line(error)) from None
    if any("${" in str(value) for value in point.values()):
        complete(run)
    canonicalise(run)
    validate(run)
    OmegaConf.set_readonly(run, True)
    return run


def complete(run: DictConfig) -> DictConfig:
    """Resolve references and refuse settings that are missing; returns `run`."""
    try:
        OmegaConf.resolve(run)
    except OmegaConfBaseException as error:
        key = str(getattr(error, "full_key", None) or getattr(error, "key", None) or "config")
        raise SettingError(key, "${...}", one_line(error)) from None
    for key in sorted(OmegaConf.missing_keys(run)):
        raise SettingError(key, None, "must be set")
    return run


def from_file(path: Path) -> DictConfig:
    """A resolved run config from a file, e.g. a record's `config.yaml`."""
    loaded = read(path)
    if not isinstance(loaded, DictConfig):
        raise SettingError("config file", str(path), "must hold the settings of one run")
    base = OmegaConf.structured(RUNS[choose("paper", loaded.get("paper"), RUNS)])
    return resolve(complete(merge(base, loaded, where=str(path))), {})


def canonicalise(run: DictConfig) -> None:
    """Give settings that have no effect one value, so that the same training has one id."""
    if run.paper == "acid":
        canonicalise_study(run)
        canonicalise_engine(run)
        if run.method == "allreduce":
            run.graph, run.rate, run.pairing = "complete", 1.0, "poisson"
            run.gradient_read, run.init = "event", "common"
        if run.method != "acid":
            run.dynamics = "exact"
        if run.pairing == "poisson":
            run.owed = "poisson"
        canonicalise_clock(run.clock)
    if run.paper == "forward_gradient":
        canonicalise_forward_gradient(run)
    if run.data.partition != "dirichlet":
        run.data.concentration = Data.concentration


def canonicalise_engine(run: DictConfig) -> None:
    """Real processes take real time, pair who is there, and read x when a gradient starts."""
    if run.engine != "processes":
        return
    run.clock = OmegaConf.structured(Clock(slow_workers=run.clock.slow_workers, slow_factor=run.clock.slow_factor))
    run.pairing, run.gradient_read = "availability", "start"  # all-reduce has neither


def canonicalise_clock(clock: DictConfig) -> None:
    """What has no effect under the clock's law."""
    plain = Clock()
    if clock.law != "gamma":
        clock.variation = plain.variation
    if clock.law != "trace":
        clock.trace = plain.trace
    if clock.slow_workers == 0:
        clock.slow_factor = plain.slow_factor
    if clock.away_share == 0:
        clock.away_time = plain.away_time


def canonicalise_study(run: DictConfig) -> None:
    """A study of paper A has no data and no network, a training no written-down problem."""
    if run.study == "training":
        run.quadratic = OmegaConf.structured(Quadratic())
        return
    kept = Optim(lr=run.optim.lr, momentum=run.optim.momentum) if run.study == "quadratic" else Optim()
    run.optim, run.data, run.model = (OmegaConf.structured(part) for part in (kept, Data(name="none"), Model()))
    run.evaluation = OmegaConf.structured(Evaluation(points=run.evaluation.points))
    run.init, run.batch_norm, run.engine = "common", "recalibrate", "virtual"
    if run.study == "averaging":
        run.quadratic.noise, run.quadratic.heterogeneous = Quadratic.noise, Quadratic.heterogeneous


def canonicalise_forward_gradient(run: DictConfig) -> None:
    """What has no effect on a run of paper B. Values that are wrong stay, for `validate` to refuse."""
    plain = ForwardGradientRun()
    if run.study != "training":
        # a measurement compares methods: it has none of its own
        for key in ("target", "guess", "space", "averaged", "distribution", "mode", "per_sample_method"):
            run[key] = getattr(plain, key)
    if run.study in ("forward_mode_cost", "batchnorm_coupling", "auxiliary_cost"):
        # on a fresh net: no optimiser, no budget
        run.optim = OmegaConf.structured(Optim(batch_size=run.optim.batch_size, epochs=1))
        run.evaluation, run.measure = OmegaConf.structured(Evaluation()), OmegaConf.structured(Measure())
        run.test_statistics = plain.test_statistics
        run.measure.batches, run.tangents = 0, 1
        run.auxiliary = plain.auxiliary if run.study == "auxiliary_cost" else run.auxiliary  # it counts them all
    if run.target == run.guess:
        run.space, run.averaged = "activity", None  # backpropagation and local learning project nothing
    if run.target == run.guess == "local":
        run.mode = plain.mode
    if run.averaged is None:
        run.averaged = run.space == "weight"
    if run.guess != "random":
        run.distribution = plain.distribution
    if run.guess == "global" or (run.target, run.guess) == ("global", "random"):
        run.auxiliary = "linear"  # nothing comes from the auxiliary nets; the cheapest stands for all
    if run.mode == "projection" or run.averaged:
        run.per_sample_method = plain.per_sample_method
    if run.norm != "batch":
        run.test_statistics = plain.test_statistics
    if run.measure.batches == 0:
        run.measure = OmegaConf.structured(Measure(batches=0))


def validate(run: DictConfig) -> None:
    """Refuse what cannot work before anything is trained: `SettingError` on the first setting that is wrong."""
    validate_values(run)
    if budget.has_data(run):
        validate_batch(run)
    if run.paper == "acid":
        validate_acid(run)
    if run.paper == "forward_gradient":
        validate_forward_gradient(run)


def validate_forward_gradient(run: DictConfig) -> None:
    """Refuse cells of paper B's grid that do not exist: `SettingError` with the reason."""
    cost.scaled(cost.RESNET_PLANES[0], run.model.width)
    if run.guess == "global" and run.target != "global":
        raise SettingError("guess", "global", "only stands with target = global: it is that target")
    if run.tangents > 1 and run.guess != "random" and run.study != "estimator_error":
        raise SettingError("tangents", run.tangents, f"must be 1 with guess = {run.guess}; several need guess = random")
    if run.mode == "forward_mode" and run.guess == "global":
        raise SettingError("mode", "forward_mode", "never forms the global target, so it cannot be the guess")
    if run.per_sample_method == "one_pass" and run.norm == "batch":
        right = "samples interact through BatchNorm's batch statistics; take tangents, or norm = group"
        raise SettingError("per_sample_method", "one_pass", right)
    if run.runtime.precision != "float32" and (run.mode == "forward_mode" or run.study != "training"):
        raise SettingError("runtime.precision", run.runtime.precision, "needs mode = projection and study = training")
    per_sample_weight = run.space == "weight" and not run.averaged and run.guess != run.target
    if run.runtime.compile and (run.mode == "forward_mode" or run.study != "training" or per_sample_weight):
        right = "needs mode = projection, study = training, and no coefficients per sample in the weights"
        raise SettingError("runtime.compile", True, right)
    if run.data.partition != "iid":
        raise SettingError("data.partition", run.data.partition, "must be iid: there is one worker")
    if run.measure.batches * run.measure.batch_size > train_size(run):
        wanted = run.measure.batches * run.measure.batch_size
        raise SettingError("measure.batches", run.measure.batches, f"needs {wanted} images of {train_size(run)}")


def validate_acid(run: DictConfig) -> None:
    """The graph must exist for that many workers, and the clock must fit the pairing."""
    clocks.check(run.clock, run.workers)
    if run.study != "training" and run.method == "allreduce":
        raise SettingError(
            "method", "allreduce", f"must be acid or baseline in the study {run.study}: it is about gossip"
        )
    if run.method == "allreduce":
        return
    topology.check(run.graph, run.workers)
    if run.engine == "processes" and run.runtime.backend == "nccl" and not run.runtime.device.startswith("cuda"):
        raise SettingError("runtime.backend", "nccl", "needs runtime.device = cuda")
    for key in ("latency", "bandwidth"):
        if run.pairing == "poisson" and run.clock[key]:
            raise SettingError(
                f"clock.{key}", run.clock[key], "needs pairing = availability: poisson averages in no time"
            )


def flatten(values: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def validate_values(run: DictConfig) -> None:
    """Every setting by itself: names that exist, numbers in their range."""
    choose("model.name", run.model.name, NETWORKS[run.paper])
    choose("study", run.study, STUDIES[run.paper])
    choose("data.name", run.data.name, DATASETS if budget.has_data(run) else ("none",))
    settings = flatten(OmegaConf.to_container(run))
    for key, known in CHOICES.items():
        value = settings.get(key)
        if value is not None:
            choose(key, value, known)
    for key in POSITIVE:
        value = settings.get(key)
        if value is not None and not 0 < value < float("inf"):
            raise SettingError(key, value, "must be positive and finite")
    for key in NOT_NEGATIVE:
        value = settings.get(key)
        if value is not None and not 0 <= value < float("inf"):
            raise SettingError(key, value, "must not be negative")


def validate_batch(run: DictConfig) -> None:
    """A batch must fit into the data, and the budget must hold at least one gradient per worker."""
    images = train_size(run)
    if run.optim.batch_size > images:
        raise SettingError("optim.batch_size", run.optim.batch_size, f"{run.data.name} has {images} images to train")
    workers = OmegaConf.select(run, "workers") or 1
    if total_gradients(run) < workers:
        raise SettingError(
            "optim.epochs", run.optim.epochs, f"gives {total_gradients(run)} gradients, fewer than {workers} workers"
        )


def kind(run: DictConfig) -> str:
    """What decides which module computes a run: the study if it is one, paper A's engine or method otherwise."""
    if run.paper != "acid" or run.study != "training":
        return run.study
    return run.method if run.engine == "virtual" else run.engine


def identity(run: DictConfig) -> dict[str, Any]:
    """The settings that make the run what it is: all but how it is executed."""
    settings = OmegaConf.to_container(run, resolve=True)
    assert isinstance(settings, dict)
    settings.pop("runtime")
    return settings


def config_hash(run: DictConfig) -> str:
    """SHA-256 of the identity, in hex."""
    return hashlib.sha256(json.dumps(identity(run), sort_keys=True).encode()).hexdigest()


def number(value: float) -> str:
    """`1.0` as `1`, `0.5` as `0.5`: numbers in ids and labels."""
    return f"{value:g}"


def acid_slug(run: DictConfig) -> str:
    """E.g. `acid-ring-n64-r1-s0`."""
    parts = [run.study] * (run.study != "training") + [run.engine] * (run.engine != "virtual") + [run.method]
    if run.method != "allreduce":
        parts += [run.graph]
    parts += [f"n{run.workers}"]
    if run.method != "allreduce":
        parts += [f"r{number(run.rate)}"]
    parts += [run.dynamics] * (run.dynamics != "exact") + [run.data.partition] * (run.data.partition != "iid")
    parts += [run.pairing] * (run.pairing != "poisson") + [run.clock.law] * (run.clock.law != "exponential")
    return "-".join([*parts, f"s{run.seed}"])


def forward_gradient_slug(run: DictConfig) -> str:
    """E.g. `global-local-activity-cnn-b8-s0`, `backpropagation-b8-s0`, `estimator_error-b8-s0`."""
    blocks = f"b{run.model.name.removeprefix('resnet18_')}"
    end = [blocks, *[f"w{number(run.model.width)}"] * (run.model.width != 1), f"s{run.seed}"]
    if run.study != "training":
        return "-".join([run.study, *end])
    if run.guess == "global":
        return "-".join(["backpropagation", *end])
    parts = [run.target, run.guess]
    if run.target != run.guess:
        default = run.averaged == (run.space == "weight")
        parts += [run.space + ("" if default else "_averaged" if run.averaged else "_per_sample")]
    parts += [run.distribution] * (run.distribution != "gaussian")
    parts += [f"{run.tangents}tangents"] * (run.tangents > 1) + [run.mode] * (run.mode != "projection")
    parts += [run.auxiliary] * ((run.target, run.guess) != ("global", "random"))
    return "-".join([*parts, *[run.norm] * (run.norm != "batch"), *end])


SLUGS: dict[str, Callable[[DictConfig], str]] = {"acid": acid_slug, "forward_gradient": forward_gradient_slug}


def run_id(run: DictConfig) -> str:
    """What a person can read, and 8 hex digits of the config's hash."""
    return f"{SLUGS[run.paper](run)}-{config_hash(run)[:8]}"
