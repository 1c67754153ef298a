"""The benchmark's PyTorch baseline: steps of search and retraining, eager.

    darts-jax benchmark --size=NAME --baseline=torch [--torch-compile]

starts this file as a worker (`--compile` for torch.compile) and asks for steps over a pipe,
see darts_jax/benchmark/pipe.py. Same shapes, same updates in the same order, same rules of
batch norm as ours, threads as many as cores. Networks and steps stand in the files beside.
Of darts_jax only what does without jax is imported: its memory would count as PyTorch's.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch_nas_bench_201 import NasBench201Supernet  # noqa: E402
from torch_networks import Network, Supernet  # noqa: E402
from torch_steps import Images, Retraining, Search, search_step  # noqa: E402

from darts_jax import zoo  # noqa: E402
from darts_jax.benchmark import memory, pipe  # noqa: E402
from darts_jax.benchmark.sizes import (  # noqa: E402
    NUM_CLASSES,
    WORKLOADS,
    Size,
    size_named,
)
from darts_jax.genotype import Genotype  # noqa: E402
from darts_jax.spaces import SPACES  # noqa: E402

DEVICES = {"cpu": "cpu", "gpu": "cuda"}  # of JAX's backends
# The order of images in memory. On CPUs channels last is up to twice as fast as what the
# authors' programs have (NCHW); on GPUs, where that was measured, it was not tried.
LAYOUTS = {"cpu": torch.channels_last, "cuda": torch.contiguous_format}


class Task(NamedTuple):
    """A step that returns the train loss before it, and the model it trains."""

    step: Callable[[], Tensor]
    model: nn.Module


def make_task(size: Size, name: str, device: str, compiled: bool) -> Task:
    """Returns the workload `name` with random images; `compiled`: through torch.compile."""
    torch.manual_seed(0)
    wrap = torch.compile if compiled else lambda model: model
    if WORKLOADS[name].network == "network":
        chosen = size.retrain
        assert chosen is not None
        network = Network(
            Genotype.from_json(zoo.entry(chosen.genotype)["genotype"]),
            num_cells=chosen.num_cells,
            channels=chosen.channels,
            image_channels=size.image[2],
            num_classes=NUM_CLASSES,
            stem_multiplier=size.stem_multiplier,
            auxiliary=chosen.auxiliary,
        ).to(device, memory_format=LAYOUTS[device])
        retraining = Retraining(network, chosen.drop_path, wrap(network))
        batch = random_images(size, chosen.batch, device)
        return Task(lambda: retraining.step(batch), network)
    space = SPACES[size.space]()
    options: dict[str, Any] = {
        "num_cells": size.num_cells,
        "channels": size.channels,
        "image_channels": size.image[2],
        "num_classes": NUM_CLASSES,
    }
    if space.skeleton == "darts":
        options["stem_multiplier"] = size.stem_multiplier
        model: nn.Module = Supernet(space, **options)
    else:
        model = NasBench201Supernet(space, **options)
    model.to(device, memory_format=LAYOUTS[device])
    shape = (space.num_edges, len(space.primitives))
    alphas = {
        kind: (1e-3 * torch.randn(shape, device=device)).requires_grad_()
        for kind in space.cell_kinds
    }
    search = Search(
        model,
        alphas,
        nesterov=size.nesterov,
        weight_decay=size.weight_decay,
        forward=wrap(model),
    )
    train, valid = (random_images(size, size.batch, device) for _ in range(2))
    hypergradient = WORKLOADS[name].hypergradient
    if not hypergradient:
        return Task(lambda: search.weights_step(train), model)
    return Task(search_step(search, hypergradient, size.order, train, valid), model)


def random_images(size: Size, number: int, device: str) -> Images:
    """Returns a batch of random images and labels."""
    height, width, channels = size.image
    images = torch.randn(number, channels, height, width, device=device)
    images = images.contiguous(memory_format=LAYOUTS[device])
    return images, torch.randint(NUM_CLASSES, (number,), device=device)


def cores() -> int:
    """Returns how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Session:
    """One workload; its methods answer requests as those of our own worker do."""

    def __init__(self, compiled: bool) -> None:
        self.compiled, self.device = compiled, "cpu"
        self.task: Task | None = None

    def accept(self, backend: str) -> dict[str, Any]:
        """Whether it runs where ours does, on a JAX backend; else why not."""
        if backend not in DEVICES:
            return {"refused": f"it runs on CPUs and GPUs, not on a {backend}"}
        if DEVICES[backend] == "cuda" and not torch.cuda.is_available():
            return {
                "refused": "jax runs on a GPU and this PyTorch cannot; install one "
                "that can, or set JAX_PLATFORMS=cpu"
            }
        return {"versions": {"torch": torch.__version__}}

    def prepare(self, size: str, workload: str, backend: str) -> dict[str, Any]:
        """Builds the workload on the kind of device that ours runs on."""
        self.device = DEVICES[backend]
        start = time.perf_counter()
        torch.set_num_threads(cores())
        torch.backends.cudnn.benchmark = True  # as the authors' programs set it
        self.task = make_task(size_named(size), workload, self.device, self.compiled)
        return {
            "init_s": time.perf_counter() - start,
            "threads": torch.get_num_threads(),
            "parameters": sum(w.numel() for w in self.task.model.parameters()),
            "resident_bytes": memory.resident_bytes(),
        }

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def step(self, count: int = 1) -> dict[str, Any]:
        """Runs `count` steps; the seconds of one and the train loss before the last one."""
        assert self.task is not None
        self._wait()
        start = time.perf_counter()
        for _ in range(count):
            loss = self.task.step()
        self._wait()
        seconds = (time.perf_counter() - start) / count
        return {"seconds": seconds, "train_loss": loss.item()}

    def reset_peak(self) -> dict[str, Any]:
        """Starts the peaks anew."""
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        return {"reset": memory.reset_peak()}

    def peak(self) -> dict[str, Any]:
        """The peak of resident memory, and of the device's own."""
        cuda = self.device == "cuda"
        return {
            "peak_resident_bytes": memory.peak_bytes(),
            "peak_device_bytes": torch.cuda.max_memory_allocated() if cuda else None,
        }


def main() -> None:
    """Serves until the parent closes the pipe."""
    session = Session("--compile" in sys.argv[1:])
    names = ("accept", "prepare", "step", "reset_peak", "peak")
    pipe.serve({name: getattr(session, name) for name in names})


if __name__ == "__main__":
    main()
