"""What is measured and how large: the registries SIZES and WORKLOADS; plain data."""

from typing import NamedTuple

from darts_jax.errors import unknown

NUM_CLASSES = 10
MIB = 2**20


class Retrain(NamedTuple):
    """The network that `retrain_step` trains.

    drop_path: its probability, the same at every step (a run raises it from 0).
    """

    num_cells: int = 20
    channels: int = 36
    batch: int = 96
    auxiliary: bool = True
    genotype: str = "DARTS_V2"
    drop_path: float = 0.1


class Size(NamedTuple):
    """The setting of a search, and of a retraining where there is one.

    num_cells: in all, or a stage (NAS-Bench-201).
    image: (H, W, C).
    batch: images of the train batch, and of the valid batch.
    order, nesterov, weight_decay: as in configs/base.py.
    steps: timed steps of each workload by default.
    copy_bytes: the array that the memory bandwidth is measured with.
    """

    space: str
    num_cells: int
    channels: int
    image: tuple[int, int, int]
    batch: int
    retrain: Retrain | None
    steps: int
    stem_multiplier: int = 3
    order: str = "alphas_first"
    nesterov: bool = False
    weight_decay: float = 3e-4
    copy_bytes: int = 256 * MIB


class Variant(NamedTuple):
    """What can be chosen of our side beside a size.

    implementation: of the networks, as for `make_supernet`, as is the precision.
    seeds: how many states one program trains, each its own, with the same batches.
    """

    implementation: str = "fused"
    precision: str = "float32"
    seeds: int = 1


USUAL = Variant()
CIFAR = (32, 32, 3)
SIZES: dict[str, Size] = {
    # Liu et al. 2019, section 3.1: search, and retraining of DARTS_V2.
    "paper": Size("darts", 8, 16, CIFAR, 64, Retrain(), 5),
    "paper_b16": Size("darts", 8, 16, CIFAR, 16, Retrain(batch=16), 5),
    # Dong and Yang 2020; configs/search_nb201.py. It has nothing to retrain.
    "nb201": Size(
        "nas_bench_201",
        5,
        16,
        CIFAR,
        64,
        None,
        5,
        order="weights_first",
        nesterov=True,
        weight_decay=5e-4,
    ),
    # What scripts/quickstart.sh runs: configs/search_digits.py, configs/retrain_digits.py.
    "quickstart": Size(
        "darts", 3, 8, (8, 8, 1), 64, Retrain(4, 16, 64, auxiliary=False), 30
    ),
    "tiny": Size(
        "tiny",
        1,
        4,
        (8, 8, 3),
        4,
        Retrain(1, 4, 4, auxiliary=False),
        2,
        copy_bytes=MIB,
    ),
}


class Workload(NamedTuple):
    """One kind of step.

    network: "supernet" or "network" (a derived one).
    hypergradient: in bilevel.HYPERGRADIENTS; empty: weights only.
    passes: forward and backward passes over a batch; what is beyond the first two of a
        second-order step runs at the virtual weights or beside the weights. `unrolled` has
        one pass and one tangent of a pass in the place of the two of the finite difference.
    batches: how many batches of images a step takes.
    baseline: the workload of a baseline that it is compared with, where the baseline has
        none of its own; empty: the same one.
    ratio: the key of its ratio in the record.
    """

    network: str
    hypergradient: str
    passes: int
    batches: int
    ratio: str
    baseline: str = ""


SECOND = "search_step_finite_difference"
WORKLOADS: dict[str, Workload] = {
    "weights_step": Workload("supernet", "", 1, 1, "weights_step"),
    "search_step_first_order": Workload(
        "supernet", "first_order", 2, 2, "search_step_first_order"
    ),
    SECOND: Workload("supernet", "finite_difference", 5, 2, "search_step_second_order"),
    "search_step_unrolled": Workload(
        "supernet", "unrolled", 5, 2, "search_step_exact_second_order", SECOND
    ),
    "retrain_step": Workload("network", "", 1, 1, "retrain_step"),
}


def size_named(name: str) -> Size:
    """Returns a size of the registry; raises UserError where it has none of that name."""
    if name not in SIZES:
        raise unknown("size", name, SIZES)
    return SIZES[name]


def workloads_of(size: Size, names: list[str] | None = None) -> list[str]:
    """Returns the names of the workloads to run, in the order of the registry.

    Args:
        size: one without a retraining has no `retrain_step`.
        names: only these; None: all of the size.

    Raises:
        UserError: a name that the size has not.
    """
    there = [
        name
        for name, workload in WORKLOADS.items()
        if workload.network == "supernet" or size.retrain is not None
    ]
    for name in names or []:
        if name not in there:
            raise unknown("workload of this size", name, there)
    return [name for name in there if names is None or name in names]


def images_per_step(size: Size, name: str) -> int:
    """Returns how many images one step of a workload takes in, valid batches included.

    Of one seed.
    """
    if WORKLOADS[name].network == "network":
        assert size.retrain is not None
        return size.retrain.batch
    return WORKLOADS[name].batches * size.batch
