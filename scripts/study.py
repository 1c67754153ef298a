#!/usr/bin/env python
"""Runs the main job over several seeds against random genotypes, and records the numbers.

    python scripts/study.py --name=NAME --runs=DIR --seeds=3 --randoms=5 \
        --search="--config=configs/search_cifar10.py --config.num_epochs=5" \
        --retrain="--config=configs/retrain_cifar10.py --config.num_epochs=10" \
        -- --config.dataset.name=folder --config.dataset.path=DIR

Seed s is searched into DIR/search-s and its genotype retrained into DIR/derived-s; random
genotype r is retrained into DIR/random-r with the same options. What follows `--` goes to
all of them. As many processes as there are cores run at a time, each on a core of its own.
Every run resumes, so the same command again goes on. The report is DIR/report.html, the
numbers benchmarks/NAME.json.
"""

import argparse
import json
import os
import pathlib
import shlex
import statistics
import subprocess
import sys
import threading
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent


def read(path: pathlib.Path) -> dict:
    """Returns the content of a JSON file."""
    return json.loads(path.read_text())


class Job(NamedTuple):
    """A run of `darts_jax`: its folder, its words, and the run that must end before."""

    workdir: pathlib.Path
    words: list[str]
    after: pathlib.Path | None = None


def run_all(jobs: list[Job]) -> None:
    """Runs the jobs in this order, a core each; the first failure ends it.

    A job stands after the one it waits for, so that this one is always under way.
    """
    failed: list[str] = []
    cores = sorted(os.sched_getaffinity(0))
    waiting = list(reversed(jobs))
    ended = {job.workdir: threading.Event() for job in jobs}

    def work(core: int) -> None:
        while waiting and not failed:
            workdir, words, after = waiting.pop()
            if after is not None:
                ended[after].wait()
            if failed:
                ended[workdir].set()
                break
            workdir.parent.mkdir(parents=True, exist_ok=True)
            command = [
                sys.executable,
                "-m",
                "darts_jax",
                *words,
                f"--workdir={workdir}",
            ]
            with open(f"{workdir}.log", "a") as log:
                print(f"{workdir.name}: {shlex.join(words)}", flush=True)
                status = subprocess.run(
                    ["taskset", "-c", str(core), *command],
                    stdout=log,
                    stderr=log,
                    cwd=ROOT,
                ).returncode
            if status:
                failed.append(f"{workdir.name} ended with {status}; see {workdir}.log")
            ended[workdir].set()

    threads = [threading.Thread(target=work, args=(core,)) for core in cores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        sys.exit("study: " + "; ".join(failed))


def summary(accuracies: list[float]) -> dict:
    """Returns mean, sample standard deviation and the values."""
    spread = statistics.stdev(accuracies) if len(accuracies) > 1 else None
    return {"mean": statistics.mean(accuracies), "std": spread, "values": accuracies}


def main() -> None:
    """Runs the study of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--name", required=True)
    parser.add_argument("--runs", required=True, type=pathlib.Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--randoms", type=int, default=5, help="at least 1")
    parser.add_argument("--search", required=True, help="options of every search")
    parser.add_argument("--retrain", required=True, help="options of every retraining")
    parser.add_argument("--note", default="", help="what the record should say besides")
    parser.add_argument("common", nargs="*", help="options of both")
    arguments = parser.parse_args()
    if arguments.seeds < 1 or arguments.randoms < 1:
        parser.error("--seeds and --randoms must be at least 1")
    runs = arguments.runs.resolve()
    search = [*shlex.split(arguments.search), *arguments.common]
    retrain = [*shlex.split(arguments.retrain), *arguments.common]
    seeds, randoms = range(arguments.seeds), range(arguments.randoms)
    quiet = "--config.progress=false"
    searches = [
        Job(runs / f"search-{s}", ["search", *search, f"--config.seed={s}", quiet])
        for s in seeds
    ]
    derived = [
        Job(
            runs / f"derived-{s}",
            [
                *("retrain", *retrain, f"--config.seed={s}", quiet),
                f"--config.genotype={runs / f'search-{s}' / 'genotype.json'}",
            ],
            after=runs / f"search-{s}",
        )
        for s in seeds
    ]
    drawn = [
        Job(
            runs / f"random-{r}",
            [
                *("retrain", *retrain, f"--config.seed={r}", quiet),
                *("--config.genotype=random", f"--config.genotype_seed={r}"),
            ],
        )
        for r in randoms
    ]
    run_all(searches + drawn + derived)
    folders = [str(job.workdir) for job in searches + derived + drawn]
    subprocess.run(
        [sys.executable, "-m", "darts_jax", "report", f"--output={runs}/report.html"]
        + folders,
        cwd=ROOT,
        check=True,
    )
    results = {
        job.workdir.name: read(job.workdir / "result.json")
        for job in searches + derived + drawn
    }
    manifest = read(searches[0].workdir / "manifest.json")
    kept = (
        "versions",
        "devices",
        "backend",
        "platform",
        "cpu",
        "cores",
        "memory_bytes",
    )
    record = {
        "name": arguments.name,
        "note": arguments.note,
        "commands": {"search": search, "retrain": retrain},
        "seeds": list(seeds),
        "random_genotype_seeds": list(randoms),
        "hardware_and_versions": {k: manifest[k] for k in kept if k in manifest},
        "run_seconds": sum(result["seconds"] for result in results.values()),
        "config": {
            "search": read(searches[0].workdir / "config.json"),
            "retrain": read(drawn[0].workdir / "config.json"),
        },
        "supernet_valid_accuracy": summary(
            [results[job.workdir.name]["valid_accuracy"] for job in searches]
        ),
        "derived_test_accuracy": summary(
            [results[job.workdir.name]["test_accuracy"] for job in derived]
        ),
        "random_test_accuracy": summary(
            [results[job.workdir.name]["test_accuracy"] for job in drawn]
        ),
        "results": results,
    }
    path = ROOT / "benchmarks" / f"{arguments.name}.json"
    text = json.dumps(record, indent=1, sort_keys=True).replace(str(runs), "RUNS")
    path.write_text(text + "\n")
    print(f"numbers: {path}")


if __name__ == "__main__":
    main()
