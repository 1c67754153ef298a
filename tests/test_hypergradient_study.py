"""scripts/hypergradient_study.py: without kinks, what it measures is what the maths says."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def study(repository: Path, *options: str) -> subprocess.CompletedProcess[str]:
    script = repository / "scripts" / "hypergradient_study.py"
    config = repository / "configs" / "search_digits.py"
    return subprocess.run(
        [sys.executable, str(script), f"--config={config}:tiny", *options],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_a_smooth_supernet(repository: Path, tmp_path: Path) -> None:
    """A central difference errs by the square of its radius, a prediction by the step's."""
    record = tmp_path / "record.json"
    options = ("--smooth", "--epochs=0", "--batches=1", f"--json={record}")
    done = study(repository, *options, "--config.model.channels=2")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(record.read_text())["epochs"]
    found: dict[str, Any] = row["float64"]
    assert 0.001 < row["implicit_share"] < 1
    for small, large in (("0.001", "0.01"), ("0.0001", "0.001")):
        ratio = found["error"][large] / found["error"][small]
        assert 80 < ratio < 120
    exact = [found["prediction_error"][s]["exact"] for s in ("0.03", "0.003", "0.0003")]
    assert 80 < exact[0] / exact[1] < 120 and 80 < exact[1] / exact[2] < 120
    # Leaving the implicit term out is an error that no smaller step mends.
    fixed = found["prediction_error"]["0.0003"]["fixed"]
    assert fixed > 100 * exact[2]


def test_a_mistake_is_one_line(repository: Path) -> None:
    done = study(repository, "--epochs=one")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith("hypergradient_study: error: ")
