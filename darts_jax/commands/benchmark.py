"""`darts-jax benchmark`: time, memory and compilation of a step, beside a baseline."""

import importlib.util
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import darts_jax
from darts_jax.benchmark import measure, record
from darts_jax.benchmark.sizes import USUAL, Size, Variant, size_named, workloads_of
from darts_jax.commands import compilation_cache, flags
from darts_jax.commands.checks import CHOICES
from darts_jax.errors import UserError, unknown
from darts_jax.training.manifest import available_cores
from darts_jax.training.records import write_json

ROOT = Path(darts_jax.__file__).resolve().parents[1]
FLAGS: dict[str, str | bool | None] = {
    "size": "quickstart",
    "implementation": "fused",
    "precision": "float32",
    "seeds": "1",
    "baseline": "",
    "json": "",
    "steps": "",
    "workloads": "",
    "compile-only": False,
    "torch-compile": False,
}
BASELINES = ("torch", "pmap")
BUSY = 0.3  # load average a core: frameworks suffer from a busy one to unlike degrees


def main(argv: Sequence[str]) -> int:
    """Measures the workloads of a size, prints the table and writes the record."""
    given = flags.parse(argv, FLAGS).flags
    name = str(given["size"])
    size = size_named(name)
    chosen = [word for word in str(given["workloads"]).split(",") if word]
    workloads = workloads_of(size, chosen or None)
    variant = _variant(given)
    steps = _number("steps", str(given["steps"]) or str(size.steps))
    baselines = _baselines(str(given["baseline"]), bool(given["torch-compile"]))
    if baselines and variant._replace(implementation="fused") != USUAL:
        raise UserError("--baseline takes neither --precision nor --seeds")
    output = _output(str(given["json"]))
    if given["compile-only"]:
        if baselines or given["json"]:
            raise UserError("--compile-only takes neither --baseline nor --json")
        for workload in workloads:
            print(measure.compile_only(name, workload, variant), flush=True)
        print(f"compiled programs: {compilation_cache.directory()}")
        return 0
    command = f"darts-jax benchmark {shlex.join(argv)}".rstrip()
    load = os.getloadavg()[0]
    if load > BUSY * available_cores():
        _say(
            f"warning: this machine is busy (load average {load:.1f}); time it when idle"
        )
    with _ending_on_sigterm():
        hardware = measure.survey(baselines)
        hardware |= {"load_average_before": load, **variant._asdict()}
        backend = hardware["backend"]
        if given["baseline"] == "pmap":
            _check_split(size, len(hardware["devices"]))
        # Beside pmap, which uses all devices, ours does so too, by jit.
        devices = "jit" if given["baseline"] == "pmap" else "one"
        run = measure.Run(name, variant, backend, baselines, steps, _say, devices)
        if not given["json"]:
            output = _unused(output / record.file_name(name, hardware))
        names = [baseline.name for baseline in baselines]
        measured = {}
        for workload in workloads:
            measured[workload] = measure.measure(run, workload)
            made = record.make_record(name, measured, hardware, names, command)
            write_json(output, made)  # a long run that is stopped keeps what it has
    print("\n".join(record.table(made)))
    print(f"record: {output}")
    return 0


def _check_split(size: Size, devices: int) -> None:
    """Raises UserError where a batch of the size does not divide among the devices."""
    batches = [size.batch, *([size.retrain.batch] if size.retrain else [])]
    if any(batch % devices for batch in batches):
        raise UserError(
            f"--baseline pmap: batches of {' and '.join(map(str, batches))} do not divide "
            f"among {devices} devices; choose another size"
        )


@contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """Lets a SIGTERM end the workers and remove their caches on the way out."""
    before = signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(128 + int(signal.SIGTERM))
    )
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _number(flag: str, given: str) -> int:
    if not given.isdecimal() or int(given) < 1:
        raise UserError(f"--{flag}={given}: expected a whole number, at least 1")
    return int(given)


def _variant(given: Mapping[str, object]) -> Variant:
    """Returns what the flags choose of our side; raises UserError for unknown names."""
    fields = {"implementation": "model.implementation", "precision": "precision"}
    for flag, field in fields.items():
        if given[flag] not in CHOICES[field]:
            raise unknown(flag, str(given[flag]), CHOICES[field])
    return Variant(
        str(given["implementation"]),
        str(given["precision"]),
        _number("seeds", str(given["seeds"])),
    )


def _baselines(name: str, compiled: bool) -> list[measure.Baseline]:
    """Returns the baselines to run; raises UserError where they cannot be started."""
    if not name:
        if compiled:
            raise UserError("--torch-compile needs --baseline=torch")
        return []
    if name not in BASELINES:
        raise unknown("baseline", name, BASELINES)
    if name == "pmap":
        if compiled:
            raise UserError("--torch-compile needs --baseline=torch")
        return [measure.Baseline("pmap", (*measure.OUR_COMMAND, "pmap"))]
    script = ROOT / "benchmarks" / "torch_supernet.py"
    if not script.is_file():
        raise UserError(
            f"--baseline torch: no {script}; it is part of the repository and not of the "
            "installed package: run from a checkout"
        )
    if importlib.util.find_spec("torch") is None:
        raise UserError(
            "--baseline torch needs PyTorch: pip install -e '.[benchmark]' in the checkout"
        )
    command = (sys.executable, str(script))
    found = [measure.Baseline("torch", command)]
    if compiled:
        found.append(measure.Baseline("torch_compile", (*command, "--compile"), True))
    return found


def _output(given: str) -> Path:
    """Returns the file that `--json` names, or the folder of records; checks it now."""
    path = Path(given).expanduser() if given else ROOT / "benchmarks"
    if given and path.is_dir():
        raise UserError(f"--json={given} is a folder; name a file")
    folder = path.parent if given else path
    if not folder.is_dir():
        flag = f"--json={given}" if given else "without --json"
        raise UserError(f"{flag}: no folder {str(folder)!r}; make it, or name a file")
    if not os.access(folder, os.W_OK):
        raise UserError(f"cannot write in {str(folder)!r}; name a file by --json=FILE")
    return path


def _unused(path: Path) -> Path:
    """Returns `path`, or with a number where there is such a record already."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.stem}_{number}{path.suffix}")
    return free
