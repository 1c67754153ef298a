"""What tests share: the CPU, a compilation cache, the optional data beside us."""

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# Environment variables, set before jax is imported, so that children inherit them.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        / "darts_jax"
        / "xla"
    ),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared(repository: Path) -> Path:
    """The folder of reference data, `<shared>/data`; without it the test is skipped."""
    root = Path(os.environ.get("DARTS_JAX_SHARED") or repository.parent / "shared")
    data = root / "data"
    if not data.is_dir():
        pytest.skip(f"no reference data: {data} is missing (set DARTS_JAX_SHARED)")
    return data


@pytest.fixture
def odd_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes images of odd sizes and kinds: `odd_folder({"cat": 5, "dog": 4}, "train")`.

    Wide and tall, greyscale, with a palette or transparent, PNG and JPEG. Returns the root.
    """

    def write(classes: dict[str, int], split: str = "", name: str = "odd") -> Path:
        rng = np.random.default_rng(len(split))
        for class_name, count in classes.items():
            place = tmp_path / name / split / class_name
            place.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                height, width = rng.integers(9, 40, 2)
                pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
                image = Image.fromarray(pixels).convert(
                    ("RGB", "L", "P", "RGBA")[i % 4]
                )
                if i % 4 < 2 and i % 3:
                    image.save(place / f"{i}.jpg")
                else:
                    image.save(place / f"{i}.png")
        return tmp_path / name

    return write


@pytest.fixture
def wait_for_epochs() -> Callable[..., float]:
    """Waits for a run that was just started: `wait_for_epochs(process, workdir, 2, 300)`.

    It waits, here at most 300 seconds, until the process has written two rows of metrics
    beyond those that an earlier one left, and returns the seconds that lay between the last
    two (0 where it waits for one).
    """

    def rows(workdir: Path) -> int:
        path = workdir / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def wait(
        process: subprocess.Popen[str], workdir: Path, count: int, seconds: float
    ) -> float:
        before, seen = rows(workdir), [time.monotonic()]
        while len(seen) <= count:
            assert process.poll() is None, process.communicate()
            now = time.monotonic()
            assert now - seen[0] < seconds, "it does not get on"
            seen += [now] * (rows(workdir) - before - len(seen) + 1)
            time.sleep(0.002)
        return seen[-1] - seen[-2] if count > 1 else 0.0

    return wait
