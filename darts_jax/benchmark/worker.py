"""Our side of the benchmark, in a process of its own.

`python -m darts_jax.benchmark.worker [one|jit|pmap]`, which says how it uses the devices,
answers on a pipe: `prepare` compiles a workload, `step` runs it once and tells the seconds;
the figures of memory are those of this process.
"""

import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from darts_jax.benchmark import memory, pipe
from darts_jax.benchmark.sizes import Variant, size_named

COPIES = 7


class Session:
    """One workload, compiled, with its state; its methods answer requests."""

    def __init__(self, devices: str) -> None:
        self.devices = devices
        self.state: Any = None
        self.step_function: Any = None
        self.batches: tuple = ()
        self.fresh = True  # no step has run

    def describe(self) -> dict[str, Any]:
        """Versions, devices and machine, as in a run's manifest; the kind of the device."""
        import jax

        from darts_jax.training import manifest

        found = {"started": manifest.now(), **manifest.surroundings()}
        return found | {"device_kind": jax.devices()[0].device_kind}

    def accept(self, backend: str) -> dict[str, Any]:
        """The versions that this side adds as a baseline, or why it refuses."""
        import jax

        if jax.local_device_count() == 1:
            return {"refused": "there is one device; pmap needs several"}
        return {"versions": {}}

    def prepare(
        self, size: str, workload: str, variant: dict[str, Any], backend: str = ""
    ) -> dict[str, Any]:
        """Builds, traces and compiles; the seconds of each and XLA's figures.

        variant: the fields of a `Variant`; several seeds are for one device.
        kernels_s: of building or loading our own kernels; init_s: of the initial state.
        """
        import jax

        from darts_jax.benchmark.programs import (
            PROGRAMS,
            average_gradients,
            one_device,
        )
        from darts_jax.benchmark.tasks import make_task
        from darts_jax.kernels.allocator import return_freed_memory
        from darts_jax.kernels.compiled import kernels
        from darts_jax.training.tracing import without_collection

        begun = time.perf_counter()
        if jax.default_backend() == "cpu":  # as in training/loop.py
            kernels()  # built at the first use, else loaded
        start = time.perf_counter()
        before = average_gradients() if self.devices == "pmap" else None
        chosen = Variant(**variant)
        task = make_task(size_named(size), workload, chosen, before)
        if chosen.seeds > 1:
            program = one_device(task, chosen.seeds)
        else:
            program = PROGRAMS[self.devices](task)
        self.step_function, self.state, self.batches = program
        initialised = time.perf_counter()
        with without_collection():  # as in training/loop.py
            lowered = self.step_function.lower(self.state, *self.batches)
        traced = time.perf_counter()
        compiled = self.step_function = lowered.compile()
        done = time.perf_counter()
        if jax.default_backend() == "cpu":
            return_freed_memory()
        return {
            "kernels_s": start - begun,
            "init_s": initialised - start,
            "trace_s": traced - initialised,
            "compile_s": done - traced,
            "resident_bytes": memory.resident_bytes(),
            "parameters": sum(x.size for x in jax.tree.leaves(self.state.weights))
            // chosen.seeds,
            **_analysis(compiled),
        }

    def step(self, count: int = 1) -> dict[str, Any]:
        """Runs `count` steps without waiting between them.

        seconds: of one; train_loss: before the last one, the mean of all seeds.
        """
        import jax

        from darts_jax.kernels.allocator import return_freed_memory

        start = time.perf_counter()
        for _ in range(count):
            self.state, metrics = self.step_function(self.state, *self.batches)
        jax.block_until_ready((self.state, metrics))
        seconds = (time.perf_counter() - start) / count
        if self.fresh and jax.default_backend() == "cpu":  # as in training/loop.py
            return_freed_memory()
        self.fresh = False
        return {"seconds": seconds, "train_loss": float(metrics["train_loss"].mean())}

    def profile(self) -> dict[str, Any]:
        """Runs one step under JAX's profiler: the kernels of the device, and the step.

        kernels: {name: [runs, seconds]} of the first device; step_s: while watched, from
        the first kernel's start to the last one's end.
        """
        import jax

        with tempfile.TemporaryDirectory(prefix="darts_jax_profile_") as folder:
            with jax.profiler.trace(folder):
                self.step()
            (file,) = Path(folder).rglob("*.xplane.pb")
            return kernels_of(jax.profiler.ProfileData.from_file(str(file)))

    def reset_peak(self) -> dict[str, Any]:
        """Starts the peak of resident memory anew."""
        return {"reset": memory.reset_peak()}

    def peak(self) -> dict[str, Any]:
        """The peak of resident memory, and of the device's where it counts its own."""
        import jax

        statistics = jax.devices()[0].memory_stats() or {}
        return {
            "peak_resident_bytes": memory.peak_bytes(),
            "peak_device_bytes": statistics.get("peak_bytes_in_use"),
        }

    def bandwidth(self, copy_bytes: int) -> dict[str, Any]:
        """Bytes a second, read and written, of `x + 1` in place; the best of some runs."""
        import jax
        import jax.numpy as jnp

        add = jax.jit(lambda x: x + 1, donate_argnums=0)
        x = jax.block_until_ready(add(jnp.zeros(copy_bytes // 4, jnp.float32)))
        seconds = []
        for _ in range(COPIES):
            start = time.perf_counter()
            x = jax.block_until_ready(add(x))
            seconds.append(time.perf_counter() - start)
        return {"bytes_per_second": 2 * copy_bytes / min(seconds)}


def kernels_of(profile: Any) -> dict[str, Any]:
    """Returns what `Session.profile` does, of a `jax.profiler.ProfileData`."""
    kernels: dict[str, list[Any]] = {}
    first, last = math.inf, 0.0
    for plane in profile.planes:
        if not plane.name.startswith("/device:GPU:0"):
            continue
        for line in plane.lines:
            if not line.name.startswith("Stream"):
                continue
            for event in line.events:
                entry = kernels.setdefault(event.name, [0, 0.0])
                entry[0] += 1
                entry[1] += event.duration_ns / 1e9
                first = min(first, event.start_ns)
                last = max(last, event.start_ns + event.duration_ns)
    return {"kernels": kernels, "step_s": max(last - first, 0.0) / 1e9}


def _analysis(compiled: Any) -> dict[str, Any]:
    """XLA's own figures; None where a backend has none.

    Its FLOPs and bytes leave out what runs in kernels of our own.
    """
    stats = compiled.memory_analysis()
    costs = compiled.cost_analysis() or {}
    return {
        "temporary_bytes": getattr(stats, "temp_size_in_bytes", None),
        "argument_bytes": getattr(stats, "argument_size_in_bytes", None),
        "flops": costs.get("flops"),
        "bytes_accessed": costs.get("bytes accessed"),
    }


def main() -> None:
    """Serves until the parent closes the pipe."""
    from darts_jax.kernels.allocator import keep_freed_memory

    keep_freed_memory()  # as in commands/search.py
    session = Session(sys.argv[1] if len(sys.argv) > 1 else "one")
    names = ("describe", "accept", "prepare", "step", "profile", "reset_peak", "peak")
    pipe.serve({name: getattr(session, name) for name in (*names, "bandwidth")})


if __name__ == "__main__":
    main()
