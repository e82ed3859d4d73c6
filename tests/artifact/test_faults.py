"""What goes wrong outside the code: full and read-only disks, missing data, a W&B that cannot be reached.

Everywhere: nothing that was recorded is lost, the next call goes on, and one line says what to do.
"""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from comparison import assert_same_records
from flow import LITTLE, environment, finish, workflow
from unlocked import cli
from unlocked.artifact import mirror, record, train
from unlocked.artifact.workflow import Setup
from unlocked.errors import StorageError, storage_error
from unlocked.papers.run import Run

pytestmark = pytest.mark.faults

TRAIN = [sys.executable, "-m", "unlocked", "train"]


def lines_of(text: str, *words: str) -> list[str]:
    """Different lines that are ours and hold all `words`. There is no traceback."""
    assert "Traceback" not in text
    ours = {line.strip() for line in text.splitlines() if line.strip().startswith("unlocked: ")}
    return [line for line in ours if all(word in line for word in words)]


# one process per run


@pytest.fixture
def long_run(tiny_run: Callable[..., Run]) -> Run:
    return tiny_run({"optim.epochs": 40, "evaluation.points": 20, "runtime.checkpoint_minutes": 0})


@pytest.fixture
def call(long_run: Run, config_file: Callable, start_command: Callable, results: Path) -> Iterator[Callable]:
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


@pytest.fixture
def first(call: Callable) -> subprocess.Popen:
    """A process that trains, held so that it still does when others have started, however slow the machine is."""
    process = call()
    read_until(process.stdout, "test_loss")
    process.send_signal(signal.SIGSTOP)
    return process


def test_a_second_process_waits_and_trains_nothing(
    call: Callable, first: subprocess.Popen, long_run: Run, results: Path
) -> None:
    """It says in one line that it waits, and finds the record."""
    second = call()
    said = second.stderr.readline()
    first.send_signal(signal.SIGCONT)
    output, errors = second.communicate(timeout=120)
    assert second.returncode == 0
    assert "0 of 1 runs trained, 1 already there" in output
    assert len(lines_of(said, long_run.id, f"process {first.pid}", "waiting")) == 1
    assert not errors
    assert first.wait(timeout=60) == 0
    assert record.load(record.folder_of(results, long_run)).summary["provenance"]["resumed"] == 0


def test_a_waiting_process_takes_over_from_a_dead_one(
    call: Callable, first: subprocess.Popen, long_run: Run, results: Path
) -> None:
    """Killed while another waits: that one continues from the checkpoint."""
    second = call()
    read_until(second.stderr, "waiting")
    first.kill()
    output, _ = second.communicate(timeout=120)
    assert "1 of 1 runs trained" in output
    assert record.load(record.folder_of(results, long_run)).summary["status"] == "completed"


@pytest.mark.usefixtures("first")
def test_a_waiting_process_can_be_stopped(call: Callable) -> None:
    """SIGTERM ends it with the code and the line of an interruption."""
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

    def refuse(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    run = tiny_run()
    assert train.train([run], results) == [run.id]
    assert len(lines_of(capsys.readouterr().err, "no locks")) == 1


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
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    return path


def test_a_full_disk_is_one_line_and_loses_nothing(small_disk: Path, tmp_path: Path) -> None:
    """The workflow ends with one line that names the folder; with space again it goes on to the same results."""
    little = LITTLE.replace("epochs=60", "epochs=3")
    settings = (f"results={small_disk / 'results'}",)
    assert finish(workflow("acid_quadratic", settings=settings, little=little), tmp_path).returncode == 0
    files = (path for one in record.load_all(small_disk)["folder"] for path in Path(one).iterdir() if path.is_file())
    earlier = {path: path.read_bytes() for path in files}
    assert earlier
    filler = fill(small_disk)
    failed = finish(workflow("acid_figure_1", settings=settings, little=little), tmp_path)
    assert failed.returncode != 0
    (said,) = lines_of(failed.stderr, str(small_disk))
    assert "space" in said
    assert {path: path.read_bytes() for path in earlier} == earlier
    filler.unlink()
    assert finish(workflow("acid_figure_1", settings=settings, little=little), tmp_path).returncode == 0
    undisturbed = workflow("acid_figure_1", "acid_quadratic", settings=("results=whole",), little=little)
    assert finish(undisturbed, tmp_path).returncode == 0
    assert_same_records(small_disk / "results", tmp_path / "whole")


def test_a_write_that_is_cut_short_keeps_the_checkpoint(
    long_run: Run, config_file: Callable, results: Path, tmp_path: Path
) -> None:
    """A limit on the size of files that the history meets, and the checkpoint before it did not: one line, then on."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, resource.RLIM_INFINITY))

    done = finish([*TRAIN, str(config_file(long_run)), "--results", str(results)], tmp_path, preexec_fn=limit)
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


def test_a_read_only_folder_is_one_line(read_only: Path, long_run: Run, config_file: Callable) -> None:
    """The workflow ends before its first job, and a training by hand before its first step; a dry run is no matter."""
    line = workflow("acid_figure_1")
    done = finish(line, read_only.parent)
    assert done.returncode != 0
    assert len(lines_of(done.stderr, str(read_only), "cannot be written")) == 1, done.stderr
    assert not [line for line in done.stderr.splitlines() if line.startswith(("rule ", "localrule "))]
    assert finish([*line, "-n"], read_only.parent).returncode == 0
    done = finish([*TRAIN, str(config_file(long_run)), "--results", str(read_only)], read_only.parent)
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
    assert not list((tmp_path / "results").rglob("*.partial"))
    assert not list((tmp_path / "results").rglob("batches/*.txt"))


def test_a_tracker_that_cannot_be_reached_costs_one_line(
    tiny_run: Callable, config_file: Callable, results: Path, tmp_path: Path
) -> None:
    """Two runs in one process: both records are complete, both are mirrored offline, and one line says so."""
    runs = [tiny_run({"runtime.wandb": "online"}, seed=seed) for seed in (0, 1)]
    line = [*TRAIN, *map(str, map(config_file, runs)), "--results", str(results)]
    with socket.socket() as taken:  # a port on which nobody listens
        taken.bind(("127.0.0.1", 0))
        server = f"http://127.0.0.1:{taken.getsockname()[1]}"
        own = environment(WANDB_BASE_URL=server, WANDB_API_KEY="0" * 40)
        done = finish(line, tmp_path, env=own, timeout=mirror.SECONDS_TO_UPLOAD)
    assert done.returncode == 0, done.stderr
    assert len(lines_of(done.stderr, "cannot be reached", "wandb sync")) == 1, done.stderr
    for run in runs:
        one = record.load(record.folder_of(results, run))
        assert one.summary["status"] == "completed"
        assert list(one.folder.glob("wandb/offline-run-*"))


# impossible folders


def obstacle(kind: str, folder: Path) -> tuple[Path, str]:
    """A folder that cannot be, and what is said of it."""
    place = folder / "obstacle"
    if kind == "file":
        place.write_text("")
        return place / "results", f"{place} is a file"
    if kind == "link":
        place.symlink_to(folder / "nowhere")
        return place / "results", f"{place} is a link to {folder / 'nowhere'}, which is not there"
    return folder / ("x" * 300), "too long"


@pytest.mark.parametrize("kind", ["file", "link", "name"])
@pytest.mark.parametrize("which", ["results", "figures"])
def test_a_folder_that_cannot_be_is_one_line(kind: str, which: str, tmp_path: Path) -> None:
    """Of the workflow: before anything starts, and also where nothing is to be done."""
    place, said = obstacle(kind, tmp_path)
    with pytest.raises(SystemExit) as caught:
        Setup.read_or_exit({which: str(place)})
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    Setup.read_or_exit({which: str(tmp_path / "new" / "folder")})


@pytest.mark.parametrize("kind", ["file", "link", "name"])
def test_a_training_into_a_folder_that_cannot_be_is_one_line(
    kind: str, long_run: Run, config_file: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place, _ = obstacle(kind, tmp_path)
    assert cli.main(["train", str(config_file(long_run)), "--results", str(place)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path) in line
    assert "choose another folder" in line


def test_a_folder_in_the_place_of_a_checkpoint_is_named(long_run: Run, results: Path) -> None:
    """And not taken for a full disk."""
    folder = record.partial(record.folder_of(results, long_run)) / "checkpoint.new"
    folder.mkdir(parents=True)
    with pytest.raises(StorageError, match=f"{folder}: Is a directory"):
        train.train([long_run], results)
