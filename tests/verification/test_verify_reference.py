"""scripts/verify_reference.py as a process: its exit status and what it prints."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from darts_jax import verification
from darts_jax.errors import UserError

CASES = ("skip_connect/s2/affine/", "max_pool_3x3/s1/noaffine/")


@pytest.fixture
def verify(repository: Path):
    """Runs the script on a folder."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        script = repository / "scripts" / "verify_reference.py"
        return subprocess.run(
            [sys.executable, str(script), *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=500,
            cwd=repository,
        )

    return run


@pytest.fixture
def arrays(repository: Path) -> dict[str, np.ndarray]:
    """Two operations of the golden file: enough, and quick."""
    with np.load(repository / "tests/golden/ops_cnn.npz") as archive:
        return {k: archive[k] for k in archive.files if k.startswith(CASES)}


def _is_one_line(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode == 2, result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("verify_reference: error: ")
    for word in words:
        assert word in lines[0]


def test_a_good_folder_passes_and_recurrent_files_are_skipped(
    verify, arrays, tmp_path: Path
) -> None:
    np.savez(tmp_path / "any_name.npz", **arrays)
    np.savez(tmp_path / "rnn.npz", **{"w/encoder.weight": np.zeros((2, 2))})
    result = verify(tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "any_name.npz: operations"
    assert sum(line.endswith("ok") for line in lines) == 6
    assert any(line.startswith("rnn.npz: skipped") for line in lines)
    assert lines[-1] == "all 6 quantities agree"


def test_one_changed_value_fails(verify, arrays, tmp_path: Path) -> None:
    key = CASES[0] + "dx_train"
    arrays[key] = arrays[key].copy()
    arrays[key][1, 2, 0, 3] += 1e-6
    np.savez(tmp_path / "ops.npz", **arrays)
    result = verify(tmp_path)
    assert result.returncode == 1, result.stdout + result.stderr
    failed = [x for x in result.stdout.splitlines() if x.endswith("FAILED")]
    assert len(failed) == 1 and key in failed[0]
    assert result.stdout.splitlines()[-1].startswith("1 of 6 quantities exceed")


def test_only_the_named_files(verify, arrays, tmp_path: Path) -> None:
    np.savez(tmp_path / "good.npz", **arrays)
    (tmp_path / "garbage.npz").write_bytes(b"garbage")
    assert verify(tmp_path, "good.npz").returncode == 0
    _is_one_line(verify(tmp_path, "godo.npz"), "godo.npz", "good.npz")


def test_folders_that_cannot_be_used(verify, tmp_path: Path) -> None:
    _is_one_line(verify(tmp_path / "nowhere"), "no folder", "nowhere")
    with pytest.raises(UserError, match=r"no \.npz file in"):
        verification.golden_files(tmp_path)
    np.savez(tmp_path / "rnn.npz", **{"w/encoder.weight": np.zeros((2, 2))})
    _is_one_line(verify(tmp_path), "nothing to compare")


def test_a_named_tensor_is_missing(verify, arrays, tmp_path: Path) -> None:
    del arrays[CASES[0] + "w/bn.running_mean"]
    np.savez(tmp_path / "ops.npz", **arrays)
    _is_one_line(verify(tmp_path), "bn.running_mean")


@pytest.mark.parametrize("how", ["text", "empty", "cut", "npy", "pickle", "other"])
def test_a_file_that_is_no_golden_file(
    how: str, arrays, tmp_path: Path, repository: Path
) -> None:
    path = tmp_path / "bad.npz"
    if how == "text":
        path.write_text("no archive")
    elif how == "empty":
        path.touch()
    elif how == "cut":
        whole = (repository / "tests/golden/ops_cnn.npz").read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    elif how == "npy":
        np.save(tmp_path / "bad.npy", np.zeros(3))
        shutil.move(tmp_path / "bad.npy", path)
    elif how == "pickle":
        np.savez(path, a=np.array([{"an": "object"}], dtype=object))
    else:
        np.savez(path, a=np.zeros(3))
    with pytest.raises(UserError, match=r"^bad\.npz .*") as caught:
        verification.verify_file(path)
    assert "\n" not in str(caught.value)
