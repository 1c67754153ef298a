#!/usr/bin/env python
"""Times the quickstart of two versions, from start to report, in turn on one machine.

    python scripts/benchmark_quickstart.py --before=2595ea1 --json=FILE

Each version is installed into a clean clone of this repository (not timed; kernels are built
then). Every round runs each of them once from empty caches of programs and data, and once
more with what that run has cached; both begin without runs.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
RUNS = pathlib.Path("runs") / "quickstart"
INSTALL = 'source scripts/environment.sh; ensure_environment ""'


class Version:
    """A clean clone at `commit`, with an environment and caches of its own."""

    def __init__(self, commit: str, folder: pathlib.Path) -> None:
        self.commit, self.clone = commit, folder / "clone"
        self.cache, self.installed = folder / "cache", folder / "installed"
        unset = ("VIRTUAL_ENV", "PYTHONPATH", "DARTS_JAX_CACHE", "XLA_FLAGS")
        self.environment = {k: v for k, v in os.environ.items() if k not in unset}
        self.environment["XDG_CACHE_HOME"] = str(self.cache)
        clone = ["git", "clone", "--quiet", str(ROOT), str(self.clone)]
        subprocess.run(clone, check=True)
        checkout = ["git", "checkout", "--quiet", "--detach", commit]
        subprocess.run(checkout, cwd=self.clone, check=True)
        self.cache.mkdir()
        self.bash("-c", INSTALL)
        shutil.copytree(self.cache, self.installed)

    def bash(self, *words: str) -> None:
        """Runs bash in the clone; what it prints is shown where it fails."""
        done = subprocess.run(
            ["bash", *words],
            cwd=self.clone,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        if done.returncode:
            raise SystemExit(
                f"{self.commit} ended with {done.returncode}\n{done.stdout}"
            )

    def timed(self, *, cold: bool) -> dict:
        """Runs the quickstart; returns its seconds and the test accuracies."""
        shutil.rmtree(self.clone / RUNS, ignore_errors=True)
        if cold:
            shutil.rmtree(self.cache)
            shutil.copytree(self.installed, self.cache)
        started = time.perf_counter()
        self.bash("scripts/quickstart.sh")
        seconds = time.perf_counter() - started
        tested = {}
        for path in sorted((self.clone / RUNS).glob("*/result.json")):
            result = json.loads(path.read_text())
            if result["command"] == "retrain":
                tested[path.parent.name] = result["test_accuracy"]
        return {"cold": cold, "seconds": seconds, "test_accuracy": tested}

    def machine(self) -> dict:
        """Returns hardware and versions as the search's manifest has them."""
        manifest = json.loads((self.clone / RUNS / "search/manifest.json").read_text())
        kept = ("versions", "platform", "cpu", "memory_bytes", "kernels")
        return {name: manifest[name] for name in kept if name in manifest}


def main() -> None:
    """Runs the comparison of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--before", required=True, help="the older commit")
    parser.add_argument("--after", default="HEAD", help="the newer one")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", required=True, type=pathlib.Path)
    arguments = parser.parse_args()
    runs: dict[str, list[dict]] = {"before": [], "after": []}
    with tempfile.TemporaryDirectory() as folder:
        both = {}
        for name in runs:
            parse = ["git", "rev-parse", "--short", getattr(arguments, name)]
            commit = subprocess.check_output(parse, cwd=ROOT, text=True).strip()
            place = pathlib.Path(folder, name)
            place.mkdir()
            both[name] = Version(commit, place)
        for _ in range(arguments.rounds):
            for name, version in both.items():
                for cold in (True, False):
                    runs[name].append(version.timed(cold=cold))
                    kind = "empty" if cold else "warm"
                    seconds = runs[name][-1]["seconds"]
                    print(f"{name} {version.commit}, {kind} caches: {seconds:.1f} s")
        record = {
            "command": "scripts/benchmark_quickstart.py "
            f"--before={both['before'].commit} --after={both['after'].commit} "
            f"--rounds={arguments.rounds} --json={arguments.json}",
            "cores": len(os.sched_getaffinity(0)),
            "runs": runs,
            "ratio_cold": least(runs["after"]) / least(runs["before"]),
            "machine": {name: version.machine() for name, version in both.items()},
        }
    arguments.json.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    print(f"cold, after over before, the least of each: {record['ratio_cold']:.2f}")


def least(runs: list[dict]) -> float:
    """Returns the least seconds of the runs with empty caches."""
    return min(run["seconds"] for run in runs if run["cold"])


if __name__ == "__main__":
    main()
