"""`darts-jax doctor`: what a bug report or a first run wants to know of the machine."""

import shutil
import tempfile
from pathlib import Path

import darts_jax
from darts_jax.commands import compilation_cache, flags
from darts_jax.training import manifest

MIB, GIB = 2**20, 2**30
NEED_FILES = ("folder",)  # read from a path that the user names
MADE_HERE = ("digits", "synthetic")  # need no download


def main(argv: list[str]) -> int:
    """Prints versions, devices, data sets, disk space and caches; returns 0."""
    arguments = flags.parse(argv, {"data_dir": ""})
    data_dir = str(arguments.flags["data_dir"] or "")
    sections = {
        "versions": _versions(),
        "machine": _machine(),
        "devices": _devices(),
        "data sets": _data_sets(data_dir),
        "folders": _folders(data_dir),
    }
    for title, lines in sections.items():
        print(title)
        print("\n".join(f"  {line}" for line in lines))
    return 0


def _versions() -> list[str]:
    source = manifest.source_commit()
    commit = f" (commit {source['commit'][:12]}" if source["commit"] else ""
    commit += (", with changes)" if source["dirty"] else ")") if commit else ""
    found = manifest.versions().items()
    return [
        f"darts_jax {darts_jax.__version__}{commit}",
        *(f"{name} {version}" for name, version in found),
    ]


def _machine() -> list[str]:
    memory = manifest.memory_bytes() / GIB
    return [
        f"{manifest.cpu_model()}, {manifest.available_cores()} cores usable",
        f"{memory:.1f} GiB memory",
        f"C++ kernels: {_kernels()}",
    ]


def _kernels() -> str:
    from darts_jax.kernels import compiled

    reason = compiled.why_not()
    if reason:
        return f"none, CPU runs are several times slower: {reason}"
    return f"in {compiled.directory()}, version {compiled.digest()}"


def _devices() -> list[str]:
    import jax

    try:
        devices = jax.devices()
    except RuntimeError as error:  # a backend that was asked for and is not there
        return [f"jax finds no device: {' '.join(str(error).split())}"]
    return [
        f"{device.platform}: {device.device_kind} {device.id}" for device in devices
    ]


def _data_sets(data_dir: str) -> list[str]:
    from darts_jax.data import DATASETS

    root = _data_dir(data_dir)
    width = max(map(len, DATASETS))
    return [f"{name:{width}}  {_state(name, root)}" for name in DATASETS]


def _state(name: str, root: Path) -> str:
    if (root / name).is_dir():
        return f"prepared in {root / name}"
    if name in NEED_FILES:
        return "read from --config.dataset.path=FOLDER"
    if name in MADE_HERE:
        return "made at the first use, without a download"
    archives = sorted((root / "downloads").glob(f"{name.replace('cifar', 'cifar-')}-*"))
    if archives:
        return f"downloaded to {archives[0]}, prepared at the first use"
    return "not here, downloaded at the first use"


def _folders(data_dir: str) -> list[str]:
    cache = compilation_cache.directory()
    size = sum(f.stat().st_size for f in cache.rglob("*") if f.is_file()) / MIB
    return [
        f"data: {_space(_data_dir(data_dir))}",
        f"compiled programs: {_space(cache)}, {size:.0f} MiB used",
        f"here: {_space(Path.cwd())}",
    ]


def _space(path: Path) -> str:
    """The folder, its free space, and whether a file can be written there."""
    existing = next(
        p for p in (path.absolute(), *path.absolute().parents) if p.exists()
    )
    free = shutil.disk_usage(existing).free / GIB
    try:
        with tempfile.TemporaryFile(dir=existing):
            writable = "writable"
    except OSError as error:
        writable = f"NOT writable ({error.strerror})"
    return f"{path}, {free:.1f} GiB free, {writable}"


def _data_dir(data_dir: str) -> Path:
    from darts_jax.data import default_data_dir

    return Path(data_dir).expanduser() if data_dir else default_data_dir()
