"""Secrets stay out of files: W&B's key, and the key that authenticates the messages of a run's processes."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Callable
from multiprocessing import current_process
from pathlib import Path

import pytest

from unlocked.artifact import record, train
from unlocked.papers.run import Run

WANDB = "5ec7e7" * 6 + "abcd"
GIVEN = "a secret that the user has given to all nodes"


def forms(secret: bytes) -> list[bytes]:
    """How a secret could be written down."""
    return [secret, secret.hex().encode(), base64.b64encode(secret), repr(secret)[2:-1].encode()]


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_no_file_has_a_secret(
    tiny_run: Callable[..., Run],
    results: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    mode: str,
) -> None:
    """A run of two processes with a mirror in W&B, whose server cannot be reached: record, mirror, what is printed."""
    drawn, token_bytes = [], secrets.token_bytes

    def remembered(count: int | None = None) -> bytes:
        drawn.append(token_bytes(count))
        return drawn[-1]

    monkeypatch.setattr(secrets, "token_bytes", remembered)
    monkeypatch.setenv("WANDB_API_KEY", WANDB)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("UNLOCKED_KEY", GIVEN)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    run = tiny_run({"engine": "processes", "graph": "path", "runtime.wandb": mode}, workers=2)
    assert train.train([run], results) == [run.id]
    (tmp_path / "printed").write_text("".join(capfd.readouterr()))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert list(record.folder_of(results, run).glob("wandb/offline-run-*/*.wandb"))
    assert (tmp_path / "printed").stat().st_size > 0
    keys = [bytes(current_process().authkey), *(one for one in drawn if len(one) >= 16)]
    for secret in (WANDB.encode(), GIVEN.encode(), *keys):
        for path in files:
            content = path.read_bytes()
            assert not [form for form in forms(secret) if form in content], path
