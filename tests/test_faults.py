"""What goes wrong outside the code: kills, full and read-only disks, missing data, a W&B that cannot be reached.

Everywhere: nothing that was recorded is lost, the next call goes on, and one line says what to do.
"""

from __future__ import annotations

import fcntl
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from omegaconf import DictConfig

from comparison import assert_same_items, assert_same_records
from unlocked import config, lock, record, seeding, tracking, train
from unlocked.errors import StorageError, storage_error

pytestmark = pytest.mark.faults

ITEMS = ("acid_figure_1", "acid_quadratic")
LITTLE = (
    "seeds=[0] acid.workers=[4] acid.largest=4 acid.horizon=40 acid.training.optim.epochs=60 "
    "acid.training.evaluation.points=4"
)
KILLS = 10
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts a file system")


def environment(**more: str) -> dict[str, str]:
    """The process environment, with this source and without what other tests left of W&B."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    return inherited | {"PYTHONPATH": str(config.ROOT / "src"), "OMP_NUM_THREADS": "1", **more}


def workflow(*items: str, settings: tuple[str, ...] = (), little: str = LITTLE) -> list[str]:
    """A call of Snakemake from a folder of the test's own; checkpoints as often as possible."""
    own = ["wandb=disabled", "checkpoint_minutes=0", f"set={little}", *settings]
    profile = str(config.ROOT / "profiles" / "default")
    words = ["--snakefile", str(config.ROOT / "Snakefile"), "--workflow-profile", profile, "--cores", "2"]
    return [sys.executable, "-m", "snakemake", *items, *words, "--config", *own]


def finish(line: list[str], folder: Path) -> subprocess.CompletedProcess:
    """Run a command to its end."""
    return subprocess.run(line, cwd=folder, env=environment(), capture_output=True, text=True, timeout=600)


def lines_of(text: str, *words: str) -> list[str]:
    """Different lines that are ours and hold all `words`."""
    ours = {line.strip() for line in text.splitlines() if line.strip().startswith("unlocked: ")}
    return [line for line in ours if all(word in line for word in words)]


# kills


@pytest.mark.slow
def test_ten_kills_change_nothing(tmp_path: Path) -> None:
    """SIGKILL at random moments, to everything or to Snakemake alone; the last call ends like an undisturbed one."""
    calm, stormy = tmp_path / "calm", tmp_path / "stormy"
    calm.mkdir()
    stormy.mkdir()
    line = workflow(*ITEMS)
    assert finish(line, calm).returncode == 0
    draws = seeding.generator(0, "kills")
    groups = []
    try:
        while len(groups) < KILLS:
            process = start(line, stormy)
            alone = bool(draws.random() < 0.5)
            try:
                process.wait(timeout=float(draws.uniform(1, 9)))
            except subprocess.TimeoutExpired:
                (os.kill if alone else os.killpg)(process.pid, signal.SIGKILL)
                process.wait()
                groups.append(process.pid)
            else:  # finished before its kill: once more from the start
                assert process.returncode == 0
                assert_same_records(stormy / "results", calm / "results")
                shutil.rmtree(stormy / "results")
        done = finish(line, stormy)
    finally:
        for group in groups:  # trainers that outlived their Snakemake
            kill_group(group)
    assert done.returncode == 0, done.stderr
    assert not list((stormy / "results").rglob("*.partial"))
    assert_same_records(stormy / "results", calm / "results")
    assert_same_items(stormy / "paper_figures", calm / "paper_figures")


def start(line: list[str], folder: Path) -> subprocess.Popen:
    """Start a command, silently, in a process group of its own."""
    silent = subprocess.DEVNULL
    return subprocess.Popen(line, cwd=folder, env=environment(), start_new_session=True, stdout=silent, stderr=silent)


def kill_group(group: int) -> None:
    """End what is left of a process group."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


# one process per run


@pytest.fixture
def long_run(tiny_run: Callable[..., DictConfig]) -> DictConfig:
    """A run of some seconds that writes a checkpoint as often as possible."""
    return tiny_run({"optim.epochs": 40, "evaluation.points": 20, "runtime.checkpoint_minutes": 0})


@pytest.fixture
def call(long_run: DictConfig, config_file: Callable, start_command: Callable, results: Path) -> Iterator[Callable]:
    """Start `unlocked train` of the long run, as often as asked; what is left is killed."""
    path, started = config_file(long_run), []

    def start() -> subprocess.Popen:
        started.append(start_command("train", path, "--results", results))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def read_until(stream: object, word: str) -> None:
    """Read lines up to the first that holds `word`."""
    assert any(word in line for line in stream), word  # type: ignore[attr-defined]


def test_a_second_process_waits_and_trains_nothing(call: Callable, long_run: DictConfig, results: Path) -> None:
    """It says in one line that it waits, and finds the record."""
    first = call()
    read_until(first.stdout, "test_loss")
    second = call()
    output, errors = second.communicate(timeout=120)
    assert second.returncode == 0
    assert "0 of 1 runs trained, 1 already there" in output
    assert len(lines_of(errors, config.run_id(long_run), f"process {first.pid}", "waiting")) == 1
    assert len(errors.splitlines()) == 1
    assert first.wait(timeout=60) == 0
    assert record.load(record.folder_of(results, long_run)).summary["provenance"]["resumed"] == 0
    assert not list((results / "quick" / "acid" / "locks").iterdir())


def test_a_waiting_process_takes_over_from_a_dead_one(call: Callable, long_run: DictConfig, results: Path) -> None:
    """Killed while another waits: that one continues from the checkpoint."""
    first = call()
    read_until(first.stdout, "test_loss")
    second = call()
    read_until(second.stderr, "waiting")
    first.kill()
    output, _ = second.communicate(timeout=120)
    assert "1 of 1 runs trained" in output
    assert record.load(record.folder_of(results, long_run)).summary["status"] == "completed"


def test_a_waiting_process_can_be_stopped(call: Callable) -> None:
    """SIGTERM ends it with the code and the line of an interruption."""
    read_until(call().stdout, "test_loss")
    second = call()
    read_until(second.stderr, "waiting")
    second.terminate()
    _, errors = second.communicate(timeout=30)
    assert second.returncode == 128 + signal.SIGTERM
    assert len(lines_of(errors, "SIGTERM")) == 1


def test_a_file_system_without_locks(
    tiny_run: Callable, results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line says so, and the run is trained."""

    def refuse(*arguments: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    run = tiny_run()
    assert train.train([run], results) == [config.run_id(run)]
    assert len(lines_of(capsys.readouterr().err, "no locks")) == 1


def test_a_lock_that_is_gone_does_not_count(tmp_path: Path) -> None:
    """A process that waited for a removed lock file takes the next one, so that no two hold a run."""
    path = tmp_path / "lock"
    with path.open("w") as file:
        assert lock.is_same(file.fileno(), path)
        path.unlink()
        assert not lock.is_same(file.fileno(), path)
        path.write_text("")
        assert not lock.is_same(file.fileno(), path)


# disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """A file that takes all the space that is left."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return path


def record_files(folder: Path) -> dict[Path, bytes]:
    """The contents of all files of finished records."""
    records = [path.parent for path in folder.rglob("summary.json") if record.is_record(path.parent)]
    return {path: path.read_bytes() for place in records for path in place.iterdir() if path.is_file()}


@needs_root
def test_a_full_disk_is_one_line_and_loses_nothing(small_disk: Path, tmp_path: Path) -> None:
    """The workflow ends with one line that names the folder; with space again it goes on to the same results."""
    little = LITTLE.replace("epochs=60", "epochs=3")
    settings = (f"results={small_disk / 'results'}",)
    assert finish(workflow("acid_quadratic", settings=settings, little=little), tmp_path).returncode == 0
    earlier = record_files(small_disk)
    assert earlier
    filler = fill(small_disk)
    failed = finish(workflow("acid_figure_1", settings=settings, little=little), tmp_path)
    assert failed.returncode != 0
    said = lines_of(failed.stderr, str(small_disk))
    assert len(said) == 1, failed.stderr
    assert "space" in said[0]
    assert "Traceback" not in failed.stderr
    assert {path: path.read_bytes() for path in earlier} == earlier
    filler.unlink()
    assert finish(workflow("acid_figure_1", settings=settings, little=little), tmp_path).returncode == 0
    assert finish(workflow(*ITEMS, settings=("results=whole",), little=little), tmp_path).returncode == 0
    assert_same_records(small_disk / "results", tmp_path / "whole")


def test_a_write_that_is_cut_short_keeps_the_checkpoint(
    long_run: DictConfig, config_file: Callable, results: Path, tmp_path: Path
) -> None:
    """A limit on the size of files that the history meets, and the checkpoint before it did not: one line, then on."""
    line = [sys.executable, "-m", "unlocked", "train", str(config_file(long_run)), "--results", str(results)]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, resource.RLIM_INFINITY))

    done = subprocess.run(line, env=environment(), capture_output=True, text=True, timeout=300, preexec_fn=limit)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == len(lines_of(done.stderr, str(results / "quick" / "acid"))) == 1
    assert not list(results.rglob("checkpoint.new"))
    train.train([long_run], results)
    train.train([long_run], tmp_path / "whole")
    assert_same_records(results, tmp_path / "whole")


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that cannot be written, not even by root."""
    folder = tmp_path / "results"
    folder.mkdir()
    if os.geteuid() != 0:
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o755)
        return
    mounts = (["mount", "--bind", str(folder), str(folder)], ["mount", "-o", "remount,ro,bind", str(folder)])
    if any(subprocess.run(mount, capture_output=True).returncode for mount in mounts):
        pytest.skip("folders cannot be made read-only here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_read_only_folder_is_one_line(read_only: Path, long_run: DictConfig, config_file: Callable) -> None:
    """The workflow ends before its first job, and a training by hand before its first step; a dry run is no matter."""
    line = workflow("acid_figure_1")
    done = finish(line, read_only.parent)
    assert done.returncode != 0
    assert len(lines_of(done.stderr, str(read_only), "cannot be written")) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert not [line for line in done.stderr.splitlines() if line.startswith(("rule ", "localrule "))]
    assert finish([*line, "-n"], read_only.parent).returncode == 0
    by_hand = [sys.executable, "-m", "unlocked", "train", str(config_file(long_run)), "--results", str(read_only)]
    done = finish(by_hand, read_only.parent)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == len(lines_of(done.stderr, str(read_only))) == 1


def test_failed_writes_are_told_from_other_failures(tmp_path: Path) -> None:
    """A full disk, a forbidden folder, and what torch makes of them; nothing else becomes an error of storage."""
    assert "space" in str(storage_error(OSError(28, "No space left on device"), tmp_path))
    assert str(tmp_path) in str(storage_error(PermissionError(13, "Permission denied", str(tmp_path / "a")), tmp_path))
    other = storage_error(PermissionError(13, "Permission denied", "/elsewhere/b"), tmp_path)
    assert isinstance(other, StorageError)
    assert "/elsewhere/b" in str(other)
    assert storage_error(RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos"), tmp_path)
    assert storage_error(RuntimeError("shapes do not fit"), tmp_path) is None
    assert storage_error(FileNotFoundError(2, "No such file"), tmp_path) is None


# data and tracking


def test_a_missing_data_file_is_one_line_before_any_training(tmp_path: Path) -> None:
    """The line names the file and how to get it; no run is begun."""
    little = f"{LITTLE} acid.training.data.name=imagenet32"
    done = finish(workflow("acid_figure_1", settings=("data_root=nothing",), little=little), tmp_path)
    assert done.returncode != 0
    assert len(lines_of(done.stderr, "nothing", "imagenet32")) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "results").rglob("*.partial"))
    assert not list((tmp_path / "results").rglob("batches/*"))


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port on which nobody listens, taken so that nobody else does."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def test_a_tracker_that_cannot_be_reached_costs_one_line(
    tiny_run: Callable, config_file: Callable, results: Path, closed_port: int, tmp_path: Path
) -> None:
    """Two runs in one process: both records are complete, both are mirrored offline, and one line says so."""
    runs = [tiny_run({"runtime.wandb": "online"}, seed=seed) for seed in (0, 1)]
    line = [sys.executable, "-m", "unlocked", "train", *map(str, map(config_file, runs)), "--results", str(results)]
    where = {"WANDB_BASE_URL": f"http://127.0.0.1:{closed_port}", "WANDB_API_KEY": "0" * 40}
    started = time.monotonic()
    done = subprocess.run(
        line, env=environment(**where), cwd=tmp_path, capture_output=True, text=True, timeout=tracking.SECONDS_TO_UPLOAD
    )
    assert done.returncode == 0, (done.stderr, time.monotonic() - started)
    assert len(lines_of(done.stderr, "cannot be reached", "wandb sync")) == 1, done.stderr
    for run in runs:
        found = record.load(record.folder_of(results, run))
        assert found.summary["status"] == "completed"
        assert list(found.folder.glob("wandb/offline-run-*"))


def test_tracking_that_breaks_in_the_middle_costs_one_line(
    tiny_run: Callable, results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """W&B fails at its third call: one line, no more calls, and the record holds every evaluation."""
    calls = []

    class Broken:
        def log(self, values: object, step: int) -> None:
            calls.append(step)
            if len(calls) == 3:
                raise RuntimeError("the service\nis gone")

    monkeypatch.setattr(tracking, "start_wandb", lambda *arguments: Broken())
    run = tiny_run({"runtime.wandb": "offline", "evaluation.points": 5})
    train.train([run], results)
    assert len(lines_of(capsys.readouterr().err, "the service is gone")) == 1
    assert len(calls) == 3
    found = record.load(record.folder_of(results, run))
    assert len(found.series("test_loss")) == 6
