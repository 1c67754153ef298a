#!/usr/bin/env python
"""Measures how far first order and finite differences are from the exact hypergradient.

    python scripts/hypergradient_study.py --config=configs/search_digits.py \
        --epochs=0,1,4,12 --batches=8 --json=FILE [--config.FIELD=VALUE ...]

The search of the config runs in float32. At the end of the given epochs (0: before the first
step) the gradient of the alphas is taken on some pairs of batches, in float64 and in float32:
exact (`unrolled`), first order, and as finite differences of several radii. Each is compared
with the exact one in float64, and with what really happens to the validation loss after the
virtual step, F(alphas) = L_valid(w'(alphas), alphas), when the alphas move by a step.

With --smooth every rectifier is a SiLU, and max pools are left out of the primitives: what then
differs from a run without --smooth comes from kinks.
"""

import json
import pathlib
import sys

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np

# Of the checkout that this script stands in, installed or not.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from darts_jax import bilevel
from darts_jax.commands import configuration
from darts_jax.errors import UserError
from darts_jax.training import loop, manifest, search, search_step, setup
from darts_jax.training.feed import take
from darts_jax.training.randomness import AUGMENT_TRAIN, AUGMENT_VALID, step_key
from darts_jax.types import Batch

RADII = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
STEPS = (3e-2, 3e-3, 3e-4)  # of every alpha: Adam's first is its learning rate, 3e-4
DIRECTIONS = 8
NAMES = ("exact", "fixed", "first_order", *map(str, RADII))
FLAGS = {
    "dry-run": False,
    "epochs": "0,1",
    "batches": "4",
    "json": "",
    "smooth": False,
}
# What --smooth takes away: kernels have rectifiers of their own, plain operations JAX's.
SMOOTH = (
    "--config.model.implementation=plain",
    "--config.model.primitives=('none','avg_pool_3x3','skip_connect','sep_conv_3x3',"
    "'sep_conv_5x5','dil_conv_3x3','dil_conv_5x5')",
)

DEFINITIONS = {
    "implicit_share": "|exact - fixed| / |exact|; fixed: w' held fixed, the exact "
    "gradient without its implicit term",
    "error": "|found - exact| / |exact - fixed|, exact in float64",
    "cosine": "between found and exact, in float64",
    "prediction_error": "rms(d . found - dF) / rms(dF) over random directions d of signs, dF "
    "= [F(alphas + s d) - F(alphas - s d)] / 2 s in float64, for steps s",
    "names": "a kind of hypergradient, or the radius of a finite difference",
}


def without_implicit(loss, virtual_step, weights, alphas, train_batch, valid_batch):
    """Returns the part of the exact derivative that holds the virtual weights w' fixed.

    Its value is F(alphas).
    """
    grads, _ = jax.grad(loss, has_aux=True)(weights, alphas, train_batch)
    stepped = virtual_step(weights, grads)
    return bilevel.first_order(
        loss, virtual_step, stepped, alphas, train_batch, valid_batch
    )


KINDS = {
    "exact": bilevel.unrolled,
    "first_order": bilevel.first_order,
    "fixed": without_implicit,
    "finite_difference": bilevel.finite_difference,
}


def flat(alphas):
    """Returns the alphas, or their gradient, as one vector."""
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(alphas)])


def make_programs(task):
    """Returns {kind: compiled (state, train, valid, alphas, radius) -> (value, gradient)}."""

    def make(name):
        def program(state, train, valid, alphas, radius):
            def hypergradient(*arguments):
                options = {"radius": radius} if name == "finite_difference" else {}
                return KINDS[name](*arguments, **options)

            levels = search_step.Levels(
                task.model, task.strategy, task.space, task.optimizers, hypergradient
            )
            state = state._replace(alphas=alphas)
            found = search_step.hypergradient_at(levels, state, train, valid)
            return found.value, flat(found.alphas)

        return jax.jit(program)

    return {name: make(name) for name in KINDS}


def trajectory(task, epochs):
    """Yields (epoch, state, order, data) of the search at the given epochs."""
    plan = search.plan_of(task)
    state = search.start(task, [task.config.seed])
    for epoch in range(max(epochs) + 1):
        order, sums = plan.feed.order(state, epoch), loop.initial_sums(plan)
        if epoch in epochs:
            copy = jax.tree.map(jnp.copy, state)  # the loop gives its own away
            yield epoch, copy, *plan.feed.arguments(order)
        if epoch == max(epochs):
            return
        for _ in range(plan.steps_per_epoch):
            arguments = (*plan.feed.arguments(order), np.int32(1))
            state, sums = plan.step(state, sums, *arguments)


def batches(task, state, epoch, order, data, number):
    """Returns (train_batch, valid_batch) of the epoch's first steps, as the search has them."""
    augment = setup.build_augment(task.config, task.dataset)

    def batch(part, purpose, i):
        taken = take(data[part], order[part], i)
        images = augment(step_key(state.key, purpose, epoch, i), taken.images)
        return Batch(images, taken.labels)

    return [
        (batch("train", AUGMENT_TRAIN, i), batch("valid", AUGMENT_VALID, i))
        for i in range(number)
    ]


def cast(tree, dtype):
    """Returns the tree with all of its floating-point leaves in `dtype`."""

    def one(leaf):
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(one, tree)


def measured(programs, state, train, valid, dtype):
    """Returns {kind or radius: gradient `[A]`} of a pair of batches, computed in `dtype`."""
    arguments = cast((state, train, valid, state.alphas), dtype)
    found = {}
    for name, program in programs.items():
        radii = RADII if name == "finite_difference" else (0.0,)
        for radius in radii:
            key = str(radius) if radius else name
            _, gradient = program(*arguments, jnp.asarray(radius, dtype))
            found[key] = np.asarray(gradient, np.float64)
    return found


def moved(programs, state, train, valid):
    """Returns random directions `[D, A]` and {step: dF `[D]`}, in float64."""
    state, train, valid = cast((state, train, valid), jnp.float64)
    leaves, tree = jax.tree.flatten(state.alphas)
    ends = np.cumsum([leaf.size for leaf in leaves])
    directions = np.random.default_rng(0).choice([-1.0, 1.0], (DIRECTIONS, ends[-1]))
    radius = jnp.asarray(0.0, jnp.float64)

    def value(step):
        parts = np.split(step, ends[:-1])
        new = [
            leaf + p.reshape(leaf.shape) for leaf, p in zip(leaves, parts, strict=True)
        ]
        alphas = jax.tree.unflatten(tree, new)
        return float(programs["fixed"](state, train, valid, alphas, radius)[0])

    slopes = {
        step: np.array(
            [(value(step * d) - value(-step * d)) / (2 * step) for d in directions]
        )
        for step in STEPS
    }
    return directions, slopes


def compared(found, exact, fixed, directions, slopes):
    """Returns the figures of DEFINITIONS for the gradients `found` of a pair of batches."""
    norm = np.linalg.norm

    def rms(values):
        return np.sqrt(np.mean(np.square(values)))

    return {
        "error": {k: norm(g - exact) / norm(exact - fixed) for k, g in found.items()},
        "cosine": {k: g @ exact / norm(g) / norm(exact) for k, g in found.items()},
        "prediction_error": {
            str(step): {k: rms(directions @ g - dF) / rms(dF) for k, g in found.items()}
            for step, dF in slopes.items()
        },
    }


def medians(figures):
    """Returns the median of every figure over the pairs of batches."""
    return jax.tree.map(lambda *values: float(np.median(values)), *figures)


def at_epoch(programs, state, pairs):
    """Returns the figures of a state, those of both precisions."""
    figures = []
    for train, valid in pairs:
        single = measured(programs, state, train, valid, jnp.float32)
        with jax.enable_x64(True):
            double = measured(programs, state, train, valid, jnp.float64)
            real = moved(programs, state, train, valid)
        truth = double["exact"], double["fixed"]
        share = np.linalg.norm(truth[0] - truth[1]) / np.linalg.norm(truth[0])
        figures.append(
            {
                "implicit_share": share,
                "float64": compared(double, *truth, *real),
                "float32": compared(single, *truth, *real),
            }
        )
    return medians(figures)


def show(epoch, figures):
    """Prints the figures of an epoch as a table."""
    share = figures["implicit_share"]
    print(f"epoch {epoch}: implicit term {share:.3f} of the gradient")
    steps = "".join(f"{'predicts ' + str(s):>16}" for s in STEPS)
    print(f"{'':9}{'':18}{'error':>12}{'cosine':>10}{steps}")
    for dtype in ("float64", "float32"):
        part = figures[dtype]
        for name in NAMES:
            error, cosine = part["error"][name], part["cosine"][name]
            steps = "".join(
                f"{part['prediction_error'][str(s)][name]:16.3g}" for s in STEPS
            )
            print(f"{dtype:9}{name:18}{error:12.2g}{cosine:10.4f}{steps}", flush=True)


def main(argv):
    """Runs the study of the command line; returns the exit status."""
    words = [*argv, "--dry-run"]
    if "--smooth" in argv:
        words += SMOOTH
        linen.relu = jax.nn.relu = jax.nn.silu
    try:
        config, _, given = configuration.load(words, "search", FLAGS)
        epochs = sorted({int(text) for text in str(given["epochs"]).split(",")})
        number = int(str(given["batches"]))
        task = search.build(config, setup.read_dataset(config))
    except (UserError, ValueError) as error:
        print(f"hypergradient_study: error: {error}", file=sys.stderr)
        return 2
    programs, rows = make_programs(task), []
    for epoch, state, order, data in trajectory(task, epochs):
        pairs = batches(task, state, epoch, order, data, number)
        figures = at_epoch(programs, state, pairs)
        show(epoch, figures)
        rows.append({"epoch": epoch, **figures})
    if given["json"]:
        command = [word for word in argv if not word.startswith("--json=")]
        record = {
            "command": ["scripts/hypergradient_study.py", *command],
            "definitions": DEFINITIONS,
            "batches": f"medians over {number} pairs of batches",
            "directions": DIRECTIONS,
            "config": config.to_dict(),
            "versions": manifest.versions(),
            **manifest.source_commit(),
            "epochs": rows,
        }
        pathlib.Path(str(given["json"])).write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
