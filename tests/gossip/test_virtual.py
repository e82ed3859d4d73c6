"""The virtual engine: golden trajectories, agreement of its executions, seeds, stops, divergence, all-reduce."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.nn.functional import cross_entropy

from unlocked import loop, plan, record, train
from unlocked.gossip import allreduce, momentum, topology, virtual
from unlocked.gossip.momentum import Constants
from unlocked.gossip.schedule import GRADIENT
from unlocked.gossip.workers import Layout, build_model, initial_parameters
from unlocked.tracking import Interrupted, Recorder

DYNAMICS = {"exact": "exact", "authors_code": "released", "baseline": "exact"}
KINDS = {"grad": "gradient", "com": "communication"}


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """All parameters and images in float64, so that executions must agree to far below any real difference."""
    from unlocked.gossip.workers import Streams

    single = Streams.batches

    def batches(self: Streams, *arguments: Any) -> tuple[Tensor, Tensor]:
        images, labels = single(self, *arguments)
        return images.double(), labels

    monkeypatch.setattr(Streams, "batches", batches)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def advance_all(training: Any) -> Any:
    """Do all steps of a training without evaluating, and return its engine."""
    for span in range(training.spans):
        for _ in training.advance(span, 0):
            pass
    return getattr(training, "engine", None) or training.synchronous


def final(run: DictConfig, data: Any) -> tuple[Tensor, Tensor]:
    """Every worker's x and x~ at the end, mixed up to the last event."""
    training = virtual.Training(run, data)
    engine = advance_all(training)
    end = float(training.events.time[-1])
    pairs = [engine.now(i, end) for i in range(run.workers)]
    return torch.stack([x for x, _ in pairs]), torch.stack([twin for _, twin in pairs])


# replay


@pytest.mark.parametrize("mode", sorted(DYNAMICS))
def test_replay_is_golden(golden: dict[str, Any], mode: str) -> None:
    """Given events and gradients, x and x~ as of each worker's last event agree to 1e-9."""
    (case,) = (c for c in golden["trajectories"]["cases"] if c["mode"] == mode)
    events = [(KINDS[kind], *rest) for kind, *rest in case["events"]]
    constants = Constants.baseline() if mode == "baseline" else Constants(case["eta"], 0.5, case["beta_tilde"])
    x, twin = virtual.replay(events, case["x0"], constants, case["lr"], DYNAMICS[mode])
    np.testing.assert_allclose(x.numpy(), case["x_final"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(twin.numpy(), case["x_tilde_final"], rtol=0, atol=1e-9)


def test_replay_leaves_its_start_alone() -> None:
    """The start is copied, whatever kind of array it is."""
    start = np.ones((2, 3))
    virtual.replay([("gradient", 0.5, 0, np.ones(3)), ("communication", 1.0, 0, 1)], start, Constants.baseline(), 0.1)
    np.testing.assert_array_equal(start, np.ones((2, 3)))


def test_replay_refuses_unknown_events() -> None:
    """A kind that it does not know is named."""
    with pytest.raises(ValueError, match="'grad'"):
        virtual.replay([("grad", 0.1, 0, [1.0])], [[0.0], [0.0]], Constants.baseline(), 0.1)


def test_replay_refuses_time_that_runs_backward() -> None:
    """Events must come in order of time."""
    events = [("gradient", 1.0, 0, [1.0]), ("gradient", 0.5, 0, [1.0])]
    with pytest.raises(ValueError, match="elapsed"):
        virtual.replay(events, [[0.0], [0.0]], Constants(0.5, 0.5, 1.0), 0.1)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("sgd_momentum", [0.0, 0.9])
@pytest.mark.parametrize(("method", "dynamics"), [("acid", "exact"), ("acid", "released"), ("baseline", "exact")])
def test_engine_is_replay(tiny_run: Any, data_of: Any, sgd_momentum: float, method: str, dynamics: str) -> None:
    """The engine's own directions, replayed one by one, lead to the engine's own end in every worker."""
    run = tiny_run(
        {
            "method": method,
            "dynamics": dynamics,
            "optim.momentum": sgd_momentum,
            "optim.schedule": "constant",
            "runtime.execution": "one_by_one",
            "graph": "star",
        }
    )
    training = virtual.Training(run, data_of(run))
    engine, events, replayed = training.engine, training.events, []
    start = engine.x.clone()
    done = 0
    for span in range(training.spans):
        for _ in training.advance(span, 0):
            t, i = float(events.time[done]), int(events.i[done])
            if events.kind[done] == GRADIENT:
                replayed.append(("gradient", t, i, engine.m[i].clone()))
            else:
                replayed.append(("communication", t, i, int(events.j[done])))
            done += 1
    assert done == len(events)
    x, twin = virtual.replay(replayed, start, engine.constants, run.optim.lr, dynamics)
    assert (x - start).abs().max() > 1e-2
    torch.testing.assert_close(engine.x, x, rtol=1e-11, atol=1e-12)
    if method == "acid":
        torch.testing.assert_close(engine.x_tilde, twin, rtol=1e-11, atol=1e-12)


# executions

CASES = [
    (16, graph, method, dynamics, read)
    for graph in ("ring", "exponential", "complete")
    for method, dynamics in (("acid", "exact"), ("baseline", "exact"), ("acid", "released"))
    for read in ("event", "start")
]
CASES += [(4, "ring", "acid", "exact", "event"), (4, "exponential", "baseline", "exact", "start")]
CASES += [(64, "complete", "acid", "released", "start"), (64, "ring", "acid", "exact", "event")]


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("workers", "graph", "method", "dynamics", "read"), CASES)
def test_executions_agree(
    tiny_run: Any, data_of: Any, workers: int, graph: str, method: str, dynamics: str, read: str
) -> None:
    """Levels one worker at a time, levels batched, and events one by one end in the same parameters and twins."""
    settings = {"graph": graph, "method": method, "dynamics": dynamics, "gradient_read": read, "workers": workers}
    ends = {}
    for execution in ("loop", "batched", "one_by_one"):
        run = tiny_run(settings | {"runtime.execution": execution})
        ends[execution] = final(run, data_of(run))
    assert ends["loop"][0].std(0).max() > 1e-4  # workers differ: there is something to agree on
    for execution in ("batched", "one_by_one"):
        for mine, reference in zip(ends[execution], ends["loop"], strict=True):
            torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-10)


def test_float32_executions_agree_to_rounding(tiny_run: Any, data_of: Any) -> None:
    """In the precision of real runs the three executions differ by rounding only."""
    ends = []
    for execution in ("loop", "batched", "one_by_one"):
        run = tiny_run({"runtime.execution": execution}, workers=16)
        ends.append(final(run, data_of(run))[0])
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("double")
def test_what_is_compared_differs(tiny_run: Any, data_of: Any) -> None:
    """Method, dynamics, graph, rate and the place of the gradient each change the result."""
    plain = final(tiny_run(), data_of(tiny_run()))[0]
    for change in (
        {"method": "baseline"},
        {"dynamics": "released"},
        {"graph": "complete"},
        {"rate": 2.0},
        {"gradient_read": "start"},
    ):
        run = tiny_run(change)
        assert (final(run, data_of(run))[0] - plain).abs().max() > 1e-6, change


# seeds


@pytest.mark.parametrize("method", ["acid", "baseline", "allreduce"])
def test_same_seed_same_bits(tiny_run: Any, data_of: Any, method: str) -> None:
    """Twice the same seed gives the same bits, another seed gives others."""
    ends = []
    for seed in (0, 0, 1):
        run = tiny_run(method=method, seed=seed)
        module = allreduce if method == "allreduce" else virtual
        ends.append(advance_all(module.Training(run, data_of(run))).x)
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


def test_methods_share_events_batches_and_start(tiny_run: Any, data_of: Any) -> None:
    """Common random numbers: nothing that is drawn depends on the method."""
    acid, baseline, together = (tiny_run(method=m) for m in ("acid", "baseline", "allreduce"))
    data = data_of(acid)
    first, second = virtual.Training(acid, data), virtual.Training(baseline, data)
    synchronous = allreduce.Training(together, data)
    for name in ("kind", "time", "i", "j"):
        np.testing.assert_array_equal(getattr(first.events, name), getattr(second.events, name))
    assert torch.equal(first.engine.x, second.engine.x)
    assert torch.equal(first.engine.x[0], synchronous.synchronous.x)
    for worker, step in ((0, 0), (3, 17), (2, 400)):
        mine = first.streams.indices(worker, step)
        for other in (second.streams, synchronous.synchronous.streams):
            np.testing.assert_array_equal(mine, other.indices(worker, step))


def test_streams_cover_the_data_evenly(tiny_run: Any, data_of: Any) -> None:
    """A worker sees every image once per pass, workers see different orders, and steps can be asked in any order."""
    run = tiny_run({"optim.batch_size": 10})
    streams = virtual.Training(run, data_of(run)).streams
    size = len(data_of(run).train)
    pass_two = np.concatenate([streams.indices(1, step) for step in range(2 * size // 10 + 1)])
    assert sorted(pass_two[:size]) == list(range(size))
    assert sorted(pass_two[size : 2 * size]) == list(range(size))
    assert not np.array_equal(streams.indices(0, 0), streams.indices(1, 0))
    np.testing.assert_array_equal(streams.indices(1, 5), pass_two[50:60])


# conservation


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("execution", ["loop", "batched"])
def test_without_learning_the_sums_stay(
    tiny_run: Any, data_of: Any, monkeypatch: pytest.MonkeyPatch, execution: str
) -> None:
    """With learning rate 0 the sums over workers of x and x~ stay, the workers come together; released drifts."""
    monkeypatch.setattr(virtual.optim, "learning_rate", lambda *arguments, **options: 0.0)
    drifts = {}
    for dynamics in ("exact", "released"):
        run = tiny_run({"dynamics": dynamics, "runtime.execution": execution, "workers": 8})
        training = virtual.Training(run, data_of(run))
        engine = training.engine
        spread = torch.randn(engine.x.shape, generator=torch.Generator().manual_seed(0))
        engine.x += spread
        engine.x_tilde += spread.flip(0)  # another order, the same sum
        before = engine.x.sum(0)
        advance_all(training)
        end = float(training.events.time[-1])
        x, twin = (torch.stack(rows) for rows in zip(*(engine.now(i, end) for i in range(8)), strict=True))
        drifts[dynamics] = max(float((v.sum(0) - before).abs().max()) for v in (x, twin))
        assert x.std(0).max() < 0.5 * spread.std(0).min()
    assert drifts["exact"] < 1e-11
    assert drifts["released"] > 1e-4


@pytest.mark.usefixtures("double")
def test_consensus_by_hand(tiny_run: Any, data_of: Any) -> None:
    """The measured mean and distances are those of the workers mixed to the moment, and looking changes nothing."""
    run = tiny_run(workers=8)
    training = virtual.Training(run, data_of(run))
    engine = advance_all(training)
    time = float(training.events.time[-1]) + 0.7
    kept = engine.x.clone(), engine.x_tilde.clone()
    mean, measured = virtual.consensus(engine, time)
    assert torch.equal(engine.x, kept[0])
    assert torch.equal(engine.x_tilde, kept[1])
    x, twin = kept
    momentum.mix_(x, twin, engine.constants.eta, torch.from_numpy(time - engine.last)[:, None])
    torch.testing.assert_close(mean, x.mean(0))
    for key, rows in (("consensus_distance", x), ("consensus_distance_twin", twin)):
        assert measured[key] == pytest.approx(float((rows - rows.mean(0)).square().sum()) / 8, rel=1e-9)
        assert measured[key] > 0


# start


def test_mean_of_independent_starts_are_short(tiny_run: Any, data_of: Any) -> None:
    """The average of n independent draws has weights about 1/sqrt(n) as long as one draw."""
    lengths = {}
    for init in ("common", "mean_of_independent"):
        run = tiny_run(init=init, workers=16)
        data = data_of(run)
        layout, flat = Layout(build_model(run, data, 0)), initial_parameters(run, data)
        lengths[init] = torch.cat([v.flatten() for v in layout.views(flat) if v.ndim > 1]).norm()
        assert torch.equal(flat, initial_parameters(run, data))
    assert lengths["mean_of_independent"] / lengths["common"] == pytest.approx(1 / 4, rel=0.1)


def test_all_workers_start_equal(tiny_run: Any, data_of: Any) -> None:
    """x and x~ of every worker are one vector, for both kinds of start."""
    for init in ("common", "mean_of_independent"):
        run = tiny_run(init=init)
        engine = virtual.Training(run, data_of(run)).engine
        assert torch.equal(engine.x, engine.x[:1].expand_as(engine.x))
        assert torch.equal(engine.x, engine.x_tilde)


# all-reduce


def by_hand(run: DictConfig, data: Any, steps: int) -> Tensor:
    """Synchronous SGD with torch's optimiser: the mean over workers of gradients taken one after the other."""
    model = build_model(run, data, run.seed).train()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": run.optim.weight_decay}, {"params": rest}]
    sgd = torch.optim.SGD(groups, lr=1.0, momentum=run.optim.momentum)
    streams, total = allreduce.Streams(run, data.train.labels), allreduce.budget.total_gradients(run)
    for step in range(steps):
        sgd.zero_grad()
        for worker in range(run.workers):
            images, labels = streams.batches(data, [worker], [step])
            (cross_entropy(model(images[0]), labels[0]) / run.workers).backward()
        for group in sgd.param_groups:
            group["lr"] = allreduce.optim.learning_rate(run.optim, step * run.workers, total, run.workers)
        sgd.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("model", [{"model.name": "mlp"}, {"model.name": "resnet18", "model.width": 0.0625}])
def test_allreduce_is_synchronous_sgd(tiny_run: Any, data_of: Any, model: dict[str, Any]) -> None:
    """A few steps agree with a hand-written loop over the workers, with and without BatchNorm."""
    run = tiny_run({"method": "allreduce", "optim.weight_decay": 0.01, **model})
    data = data_of(run)
    synchronous = allreduce.Synchronous(run, data)
    start = synchronous.x.clone()
    for step in range(4):
        synchronous.step(step)
    assert (synchronous.x - start).abs().max() > 1e-3
    torch.testing.assert_close(synchronous.x, by_hand(run, data, 4), rtol=1e-10, atol=1e-12)


def test_allreduce_does_as_many_gradients_as_gossip(tiny_run: Any, data_of: Any) -> None:
    """The compared methods have one budget."""
    counts = {}
    for method, module in (("acid", virtual), ("allreduce", allreduce)):
        run = tiny_run(method=method, workers=8)
        training = module.Training(run, data_of(run))
        advance_all(training)
        counts[method] = training.counts()["gradients"]
    assert counts["acid"] == counts["allreduce"] == 176


def test_allreduce_honours_the_start(tiny_run: Any, data_of: Any) -> None:
    """All-reduce starts where gossip starts, for every kind of start (or the kind is no part of its identity)."""
    plain, averaged = (tiny_run(method="allreduce", init=init) for init in ("common", "mean_of_independent"))
    if train.plan.config.run_id(plain) == train.plan.config.run_id(averaged):
        return
    start = allreduce.Synchronous(averaged, data_of(averaged)).x
    assert torch.equal(start, initial_parameters(averaged, data_of(averaged)))


# interruptions and divergence


class StopAfter:
    """Stands in for the signal handler: asks for a stop after it has been read `reads` times."""

    def __init__(self, reads: int) -> None:
        self.left = reads

    @property
    def requested(self) -> int | None:
        self.left -= 1
        return 15 if self.left < 0 else None


def start(run: DictConfig, data: Any, results: Any, stop: Any = None) -> tuple[Any, Recorder]:
    """A training and its recorder."""
    torch.set_num_threads(1)
    module = allreduce if run.method == "allreduce" else virtual
    total = plan.estimate(run).gradients
    recorder = Recorder(record.folder_of(results, run), run, total_steps=total, code="0" * 16, stop=stop)
    return module.Training(run, data), recorder


def undisturbed(run: DictConfig, data: Any, results: Any) -> record.Record:
    """Train in one go."""
    training, recorder = start(run, data, results)
    loop.run(training, recorder, data)
    return record.load(recorder.folder)


def same(one: record.Record, two: record.Record) -> None:
    """Both records hold the same bits but for times on the wall."""
    pd.testing.assert_frame_equal(
        one.history.drop(columns="wall_time"), two.history.drop(columns="wall_time"), check_exact=True
    )
    for key in ("status", "metrics", "counts", "config_hash"):
        assert one.summary[key] == two.summary[key]


RESUMED = {
    "loop": {"runtime.execution": "loop", "optim.epochs": 2},
    "batched": {"runtime.execution": "batched", "workers": 16, "optim.epochs": 6, "evaluation.points": 2},
    "one_by_one": {"runtime.execution": "one_by_one", "dynamics": "released"},
    "start": {"gradient_read": "start", "method": "baseline", "optim.epochs": 2},
    "batch_norm": {"model.name": "resnet18", "model.width": 0.0625, "batch_norm": "average"},
    "allreduce": {"method": "allreduce", "optim.epochs": 6, "evaluation.points": 2},
}


@pytest.mark.parametrize("case", RESUMED)
def test_an_interrupted_run_ends_bit_identical(tiny_run: Any, data_of: Any, tmp_path: Any, case: str) -> None:
    """Stopped twice and continued, a run leaves the same history and metrics as one that was not stopped."""
    run = tiny_run(RESUMED[case])
    data = data_of(run)
    for reads in (2, 2):
        training, recorder = start(run, data, tmp_path / "stopped", StopAfter(reads))
        with pytest.raises(Interrupted):
            loop.run(training, recorder, data)
        assert recorder.checkpoint_path.is_file()
        assert not recorder.folder.exists()
    training, recorder = start(run, data, tmp_path / "stopped")
    assert loop.run(training, recorder, data)["provenance"]["resumed"] == 2
    assert not record.partial(recorder.folder).exists()
    same(record.load(recorder.folder), undisturbed(run, data, tmp_path / "whole"))


def test_a_stop_between_two_lines_loses_nothing(tiny_run: Any, data_of: Any, tmp_path: Any) -> None:
    """Whenever the signal comes, a stopped run has a checkpoint."""
    run = tiny_run()
    data = data_of(run)
    for reads in range(3):
        training, recorder = start(run, data, tmp_path / str(reads), StopAfter(reads))
        with pytest.raises(Interrupted):
            loop.run(training, recorder, data)
        assert recorder.checkpoint_path.is_file(), reads


def test_a_checkpoint_of_other_code_is_not_continued(tiny_run: Any, data_of: Any, tmp_path: Any) -> None:
    """A checkpoint whose code differs is ignored: the run starts anew and is right."""
    run = tiny_run()
    data = data_of(run)
    training, recorder = start(run, data, tmp_path / "stopped", StopAfter(4))
    with pytest.raises(Interrupted):
        loop.run(training, recorder, data)
    training, recorder = start(run, data, tmp_path / "stopped")
    recorder.code = "1" * 16
    assert loop.run(training, recorder, data)["provenance"]["resumed"] == 0
    same(record.load(recorder.folder), undisturbed(run, data, tmp_path / "whole"))


@pytest.mark.parametrize("method", ["acid", "allreduce"])
def test_a_stop_is_noticed_in_short_spans(tiny_run: Any, data_of: Any, tmp_path: Any, method: str) -> None:
    """A run with fewer steps between two evaluations than between two looks can still be stopped."""
    run = tiny_run({"method": method, "evaluation.points": 40})
    data = data_of(run)
    training, recorder = start(run, data, tmp_path, StopAfter(0))
    with pytest.raises(Interrupted):
        loop.run(training, recorder, data)


def test_checkpoints_come_in_time_when_spans_are_short(
    tiny_run: Any, data_of: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock of checkpoints runs on over evaluations: many spans of 2 minutes and a limit of 5 make checkpoints."""
    run = tiny_run({"evaluation.points": 12, "runtime.checkpoint_minutes": 5})
    data, made = data_of(run), []
    ticks = iter(range(10_000))  # every look at the clock is two minutes later
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: 120.0 * next(ticks)))
    monkeypatch.setattr(loop, "save", lambda *arguments: made.append(arguments))
    training, recorder = start(run, data, tmp_path)
    loop.run(training, recorder, data)
    assert made


@pytest.fixture
def diverged(tiny_run: Any, data_of: Any, tmp_path: Any) -> record.Record:
    """A record of a run whose learning rate is far too large."""
    run = tiny_run({"optim.lr": 1e9, "optim.schedule": "constant", "evaluation.points": 3})
    return undisturbed(run, data_of(run), tmp_path)


def test_a_diverging_run_is_a_result(diverged: record.Record) -> None:
    """Status, reason and the history so far are in the record; no metric is a number that is not one."""
    assert diverged.diverged
    assert "not finite" in diverged.summary["reason"]
    assert len(diverged.series("test_accuracy")) >= 1
    assert all(value is None or np.isfinite(value) for value in diverged.summary["metrics"].values())


def test_a_diverged_run_counts_what_took_place(diverged: record.Record, tiny_run: Any) -> None:
    """The counts of a run that stopped early are not those of the whole schedule."""
    counts = diverged.summary["counts"]
    whole = plan.estimate(tiny_run()).gradients
    assert counts["gradients"] < whole
    assert sum(counts["gradients_per_worker"]) == counts["gradients"]


@pytest.mark.parametrize("method", ["baseline", "allreduce"])
def test_other_methods_diverge_too(tiny_run: Any, data_of: Any, tmp_path: Any, method: str) -> None:
    """Every engine notices a loss that is not finite."""
    run = tiny_run({"method": method, "optim.lr": 1e9, "optim.schedule": "constant"})
    assert undisturbed(run, data_of(run), tmp_path).diverged


# BatchNorm and what is measured


@pytest.fixture(scope="module")
def batch_norm_metrics(tiny_run: Any, data_of: Any, tmp_path_factory: Any) -> dict[str, Any]:
    """Records of a small ResNet for the three ways to get statistics for the average."""
    return {
        mode: undisturbed(run, data_of(run), tmp_path_factory.mktemp(mode))
        for mode in ("recalibrate", "average", "worker0")
        for run in [tiny_run({"batch_norm": mode, "model.name": "resnet18", "model.width": 0.0625})]
    }


def test_batch_norm_modes_run_and_differ(batch_norm_metrics: dict[str, record.Record]) -> None:
    """Training is the same, the averaged model's accuracy depends on its statistics."""
    records = list(batch_norm_metrics.values())
    for metric in ("train_loss", "consensus_distance", "worker_test_accuracy_mean"):
        assert len({r.summary["metrics"][metric] for r in records}) == 1
    losses = [r.summary["metrics"]["test_loss"] for r in records]
    assert len(set(losses)) == 3
    assert all(np.isfinite(losses))


def test_statistics_of_the_average(tiny_run: Any, data_of: Any) -> None:
    """average: the mean of all workers' buffers; worker0: the first worker's."""
    run = tiny_run({"model.name": "resnet18", "model.width": 0.0625, "batch_norm": "average"})
    advance_all(training := virtual.Training(run, data_of(run)))
    buffers = training.networks.buffers()
    name = next(n for n in buffers[0] if n.endswith("running_mean"))
    assert not torch.equal(buffers[0][name], buffers[1][name])
    training.evaluator._set_statistics(buffers)
    found = dict(training.evaluator.model.named_buffers())[name]
    torch.testing.assert_close(found, torch.stack([b[name] for b in buffers]).mean(0))
    training.evaluator.run = tiny_run({"batch_norm": "worker0"})
    training.evaluator._set_statistics(buffers)
    assert torch.equal(dict(training.evaluator.model.named_buffers())[name], buffers[0][name])


def test_the_history_of_a_run(tiny_run: Any, data_of: Any, tmp_path: Any) -> None:
    """Evaluations at the start and at every point; counts, epochs and workers' accuracies agree with each other."""
    run = tiny_run({"evaluation.points": 4, "evaluation.workers": "always"})
    found = undisturbed(run, data_of(run), tmp_path)
    accuracy, counts = found.series("test_accuracy"), found.summary["counts"]
    assert accuracy["step"].tolist() == [0, 44, 88, 132, 176]
    assert accuracy["epoch"].to_numpy() == pytest.approx(accuracy["step"].to_numpy() * 8 / 1437)
    assert (np.diff(accuracy["virtual_time"]) > 0).all()
    workers = found.values("worker_test_accuracy")
    assert workers.index.tolist() == [0, 1, 2, 3]
    assert found.summary["metrics"]["worker_test_accuracy_mean"] == pytest.approx(workers.mean())
    assert found.summary["metrics"]["worker_test_accuracy_max"] == workers.max()
    assert sum(counts["gradients_per_worker"]) == counts["gradients"] == 176
    assert sum(c for _, _, c in counts["communications_per_edge"]) == counts["communications"] > 0
    edges = {tuple(sorted(e)) for e in topology.build("ring", 4).edges}
    assert {(i, j) for i, j, _ in counts["communications_per_edge"]} <= edges


def test_workers_are_not_measured_when_not_wanted(tiny_run: Any, data_of: Any, tmp_path: Any) -> None:
    """evaluation.workers = never leaves them out; all-reduce has one loss more than nothing to say."""
    for method in ("acid", "allreduce"):
        run = tiny_run({"evaluation.workers": "never", "method": method})
        metrics = undisturbed(run, data_of(run), tmp_path).summary["metrics"]
        assert not [name for name in metrics if name.startswith("worker")]
        assert metrics["train_loss"] < 2.31


def test_training_learns(tiny_run: Any, data_of: Any, tmp_path: Any) -> None:
    """Two epochs of the digits on 4 workers bring the average far above chance, by every method."""
    reached: dict[str, float] = {}
    for method in ("acid", "baseline", "allreduce"):
        run = tiny_run({"method": method, "optim.epochs": 3})
        reached[method] = undisturbed(run, data_of(run), tmp_path).summary["metrics"]["test_accuracy"]
    assert min(reached.values()) > 0.6, reached
