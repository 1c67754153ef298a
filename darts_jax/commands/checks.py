"""What a config's values must satisfy: a table of fields and their conditions."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from darts_jax.errors import UserError, unknown
from darts_jax.genotype import PRIMITIVES

MAX_SEED = 2**31 - 1


class Condition(NamedTuple):
    """A condition on one value, with the words that complete "must be"."""

    words: str
    holds: Callable[[Any], bool]


POSITIVE_INT = Condition("at least 1", lambda x: x >= 1)
COUNT = Condition("0 or more", lambda x: x >= 0)
SEED = Condition(f"from 0 to {MAX_SEED}", lambda x: 0 <= x <= MAX_SEED)
POSITIVE = Condition("a finite number above 0", lambda x: math.isfinite(x) and x > 0)
NOT_NEGATIVE = Condition(
    "a finite number, 0 or above", lambda x: math.isfinite(x) and x >= 0
)
SHARE = Condition("at least 0 and below 1", lambda x: 0 <= x < 1)
OPEN_SHARE = Condition("above 0 and below 1", lambda x: 0 < x < 1)
FACTOR = Condition("above 0 and at most 1", lambda x: 0 < x <= 1)
FINITE_NUMBERS = Condition(
    "a list of finite numbers",
    lambda x: all(isinstance(v, int | float) and math.isfinite(v) for v in x),
)
POSITIVE_NUMBERS = Condition(
    "a list of finite numbers above 0",
    lambda x: FINITE_NUMBERS.holds(x) and all(v > 0 for v in x),
)

CONDITIONS: dict[str, Condition] = {
    "seed": SEED,
    "genotype_seed": SEED,
    "num_seeds": POSITIVE_INT,
    "accumulate": POSITIVE_INT,
    "batch_size": POSITIVE_INT,
    "batch_norm.groups": POSITIVE_INT,
    "parallel.devices": COUNT,
    "parallel.seed_devices": COUNT,
    "parallel.steps_per_call": COUNT,
    "num_epochs": POSITIVE_INT,
    "dataset.image_size": COUNT,
    "dataset.limit": COUNT,
    "dataset.test_limit": COUNT,
    "dataset.train_fraction": OPEN_SHARE,
    "dataset.fraction": FACTOR,
    "dataset.subset_seed": SEED,
    "dataset.mean": FINITE_NUMBERS,
    "dataset.std": POSITIVE_NUMBERS,
    "dataset.resident_gib": NOT_NEGATIVE,
    "dataset.workers": COUNT,
    "dataset.prefetch": COUNT,
    "dataset.test_crop": FACTOR,
    "model.num_nodes": COUNT,
    "model.num_cells": POSITIVE_INT,
    "model.channels": POSITIVE_INT,
    "model.stem_multiplier": POSITIVE_INT,
    "weights.learning_rate": POSITIVE,
    "weights.learning_rate_min": NOT_NEGATIVE,
    "weights.momentum": SHARE,
    "weights.weight_decay": NOT_NEGATIVE,
    "weights.clip": NOT_NEGATIVE,
    "weights.decay": FACTOR,
    "alphas.learning_rate": POSITIVE,
    "alphas.b1": SHARE,
    "alphas.b2": SHARE,
    "alphas.weight_decay": NOT_NEGATIVE,
    "alphas.init_scale": NOT_NEGATIVE,
    "finite_difference.radius": POSITIVE,
    "augmentation.crop_padding": COUNT,
    "augmentation.cutout": COUNT,
    "drop_path": SHARE,
    "auxiliary_weight": NOT_NEGATIVE,
    "label_smoothing": SHARE,
    "evaluate_every": COUNT,
    "checkpoint_every": POSITIVE_INT,
    "keep_checkpoints": POSITIVE_INT,
    "log_every_steps": POSITIVE_INT,
}

CHOICES: dict[str, tuple[str, ...]] = {
    "preset": ("code", "paper"),
    "dataset.streaming": ("auto", "always", "never"),
    "model.implementation": ("plain", "fused", "merged"),
    "model.stem": ("cifar", "imagenet"),
    "parallel.seeds": ("auto", "together", "in_turn"),
    "precision": ("float32", "bfloat16"),
    "weights.schedule": ("cosine", "exponential", "constant"),
    "alphas.order": ("alphas_first", "weights_first"),
    "batch_norm.evaluation": ("running", "batch", "batch_in_cells"),
}


# What one command alone reads: an override of it in the other's would do nothing.
READ_BY: dict[str, tuple[str, ...]] = {
    "search": (
        "one_shot",
        "hypergradient",
        "finite_difference.",
        "alphas.",
        "dataset.train_fraction",
        "batch_norm.evaluation",
        "batch_norm.stem_affine",
    ),
    "retrain": (
        "genotype",
        "genotype_seed",
        "drop_path",
        "model.auxiliary",
        "auxiliary_weight",
        "label_smoothing",
        "dataset.test_limit",
    ),
}


# What is read where another field has one of some values only.
READ_WHERE: dict[str, tuple[str, tuple[Any, ...]]] = {
    "finite_difference.radius": ("hypergradient", ("finite_difference",)),
    "weights.learning_rate_min": ("weights.schedule", ("cosine",)),
    "weights.decay": ("weights.schedule", ("exponential",)),
    "augmentation.crop_padding": ("augmentation.name", ("crop_flip",)),
    "augmentation.flip": ("augmentation.name", ("crop_flip", "resized_crop")),
    "augmentation.cutout": ("augmentation.name", ("crop_flip", "resized_crop")),
    "genotype_seed": ("genotype", ("random",)),
}


def check_overrides(
    command: str, fields: Iterable[str], flat: Mapping[str, Any]
) -> None:
    """Raises UserError where an override names a field that the command does not read.

    Values that a config file sets are not looked at: one file may serve both commands.
    flat: {field: value} of the whole config.
    """
    for field in fields:
        switch, values = READ_WHERE.get(field, ("", ()))
        if switch in flat and flat[switch] not in values:
            wanted = " or ".join(map(str, values))
            raise UserError(
                f"--config.{field} does nothing with config.{switch}="
                f"{flat[switch]!s:.80}: only {wanted} reads it"
            )
    for other, own in READ_BY.items():
        for field in fields:
            if other != command and any(
                field == name or (name.endswith(".") and field.startswith(name))
                for name in own
            ):
                raise UserError(
                    f"--config.{field} does nothing in a {command}: only "
                    f"{other} reads it"
                )


def check_fields(flat: Mapping[str, Any]) -> None:
    """Raises UserError where fields are missing that every run reads."""
    missing = [field for field in (*CONDITIONS, *CHOICES) if field not in flat]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(
            f"the config has no field {', '.join(missing[:3])}{more}; start from "
            "base.get_config() of configs/base.py"
        )


def check_values(flat: Mapping[str, Any]) -> None:
    """Raises UserError where a value of `{"section.field": value}` is out of range."""
    for field, condition in CONDITIONS.items():
        if field in flat and not condition.holds(flat[field]):
            raise UserError(
                f"config.{field} is {flat[field]!r} but must be {condition.words}"
            )
    for field, choices in CHOICES.items():
        if field in flat and flat[field] not in choices:
            raise unknown(f"config.{field}", flat[field], choices)
    initial, final = (
        flat.get(f"weights.learning_rate{end}", 0.0) for end in ("", "_min")
    )
    if flat.get("weights.schedule") == "cosine" and final > initial:
        raise UserError(
            f"config.weights.learning_rate_min is {final} but must be at most "
            f"weights.learning_rate={initial}"
        )
    last = flat.get("seed", 0) + flat.get("num_seeds", 1) - 1
    if last > MAX_SEED:
        raise UserError(f"config.num_seeds leads to seed {last}, above {MAX_SEED}")
    for primitive in flat.get("model.primitives", ()):
        if primitive not in PRIMITIVES:
            raise unknown("primitive in config.model.primitives", primitive, PRIMITIVES)


def check_precision(flat: Mapping[str, Any]) -> None:
    """Raises UserError where the finite difference would be lost in bfloat16's rounding.

    It moves all weights together by 0.01: most by less than half of their last bit.
    """
    if (flat.get("precision"), flat.get("hypergradient")) == (
        "bfloat16",
        "finite_difference",
    ):
        raise UserError(
            "config.precision='bfloat16' rounds away the steps of "
            "config.hypergradient='finite_difference'; choose hypergradient='unrolled' "
            "(exact) or precision='float32'"
        )


def check_names(flat: Mapping[str, Any]) -> None:
    """Raises UserError where a field names something that no registry holds."""
    # Imported here: they pull in jax, which a mistake in a number need not wait for.
    from darts_jax.bilevel import HYPERGRADIENTS
    from darts_jax.data import AUGMENTATIONS, DATASETS
    from darts_jax.one_shot import ONE_SHOT
    from darts_jax.spaces import SPACES

    registries: dict[str, Mapping[str, Any]] = {
        "space": SPACES,
        "one_shot": ONE_SHOT,
        "hypergradient": HYPERGRADIENTS,
        "dataset.name": DATASETS,
        "augmentation.name": AUGMENTATIONS,
    }
    for field, registry in registries.items():
        if field in flat and flat[field] not in registry:
            raise unknown(f"config.{field}", flat[field], registry)
