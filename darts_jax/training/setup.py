"""What a config asks for, built: data on the device, space, optimizers, augmentation."""

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax

from darts_jax.bilevel import HYPERGRADIENTS, Hypergradient
from darts_jax.data import (
    AUGMENTATIONS,
    Dataset,
    Split,
    StreamedImages,
    Streaming,
    load_dataset,
)
from darts_jax.errors import UserError
from darts_jax.spaces import SPACES, Space
from darts_jax.training.optimizers import (
    Schedule,
    alpha_optimizer,
    learning_rate_schedule,
    weight_optimizer,
)
from darts_jax.training.parallel import Layout

MAX_STEPS = 2**31 - 1  # SearchState.step is an int32


class DeviceSplit(NamedTuple):
    """Data on the device: uint8 `[N, H, W, C]`, int32 `[N]`; a whole split or a batch."""

    images: jax.Array
    labels: jax.Array


def on_device(split: Split, layout: Layout) -> DeviceSplit | Split:
    """Copies images and labels to every device; they stay uint8, four times smaller.

    Streamed images stay on disk, and the split is returned as it is.
    """
    if isinstance(split.images, StreamedImages):
        return split
    whole = (split.images, split.labels)
    return DeviceSplit(*layout.put(whole, layout.everywhere))


def read_dataset(config: Any) -> Dataset:
    """Loads `config.dataset`; raises UserError as `data.load_dataset` does."""
    chosen = config.dataset
    return load_dataset(
        chosen.name,
        path=chosen.path,
        data_dir=chosen.data_dir,
        limit=chosen.limit,
        test_limit=chosen.test_limit,
        image_size=chosen.image_size,
        fraction=chosen.fraction,
        subset_seed=chosen.subset_seed,
        mean=tuple(chosen.mean),
        std=tuple(chosen.std),
        streaming=Streaming(
            mode=chosen.streaming,
            resident_gib=chosen.resident_gib,
            workers=chosen.workers,
            prefetch=chosen.prefetch,
            test_crop=chosen.test_crop,
        ),
    )


def build_space(config: Any) -> Space:
    """Returns `config.space` with the config's nodes and primitives.

    Raises:
        UserError: as the space's builder does, or the file of edge primitives is unusable.
    """
    model, options = config.model, {}
    if model.num_nodes:
        options["num_nodes"] = model.num_nodes
    if model.primitives:
        options["primitives"] = tuple(model.primitives)
    if model.edge_primitives:
        path = Path(model.edge_primitives)
        try:
            lists = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(
                f"config.model.edge_primitives: cannot read {path}: {error}"
            ) from None
        if not isinstance(lists, dict):
            raise UserError(
                f"config.model.edge_primitives: {path} holds no object with a list of "
                "lists for each cell kind"
            )
        options["edge_primitives"] = lists
    try:
        return SPACES[config.space](**options)
    except TypeError:
        empty = {"primitives": "()", "edge_primitives": "''"}
        unset = [
            f"config.model.{name}={empty[name]}" for name in empty if name in options
        ]
        raise UserError(
            f"space {config.space!r} has its own primitives; set {' and '.join(unset)}"
        ) from None


def edge_primitives_digest(config: Any) -> dict[str, str]:
    """Returns what tells the lists of `model.edge_primitives` from others; {} without any.

    The config has only the name of their file. Raises UserError as `build_space` does.
    """
    if not config.model.edge_primitives:
        return {}
    lists = build_space(config).edge_primitives
    assert lists is not None
    text = json.dumps(dict(lists), sort_keys=True)
    return {"edge primitives": hashlib.sha256(text.encode()).hexdigest()[:16]}


def computation(config: Any) -> dict[str, Any]:
    """Returns what `make_supernet` and `make_network` take of how they are computed."""
    return {
        "implementation": config.model.implementation,
        "precision": config.precision,
        "remat": config.model.remat,
        "norm_groups": config.batch_norm.groups,
    }


def build_augment(config: Any, dataset: Dataset) -> Callable[..., jax.Array]:
    """Returns `(key, images uint8) -> images float32` of the config's augmentation."""
    chosen = config.augmentation
    # A stream has cut its crops from the files' own sizes already.
    options = {"cropped": True} if crops_on_host(config, dataset) else {}
    return partial(
        AUGMENTATIONS[chosen.name],
        mean=dataset.mean,
        std=dataset.std,
        crop_padding=chosen.crop_padding,
        flip=chosen.flip,
        cutout=chosen.cutout,
        **options,
    )


def crops_on_host(config: Any, dataset: Dataset) -> bool:
    """Whether the random resized crops are cut while streaming, from the whole images."""
    return dataset.streamed and config.augmentation.name == "resized_crop"


def build_schedule(config: Any, steps_per_epoch: int) -> Schedule:
    """Returns step -> learning rate of the weights.

    Raises:
        UserError: the run has more steps than a state can count.
    """
    chosen = config.weights
    if config.num_epochs * steps_per_epoch > MAX_STEPS:
        raise UserError(
            f"config.num_epochs={config.num_epochs} makes more than {MAX_STEPS:,} steps; "
            f"choose at most {MAX_STEPS // steps_per_epoch}"
        )
    return learning_rate_schedule(
        chosen.schedule,
        initial=chosen.learning_rate,
        final=chosen.learning_rate_min,
        decay=chosen.decay,
        num_epochs=config.num_epochs,
        steps_per_epoch=steps_per_epoch,
    )


def build_weight_optimizer(
    config: Any, schedule: Schedule, *, clip: bool = True
) -> optax.GradientTransformation:
    """Returns the weights' optimizer; without `clip` it is the virtual step's."""
    chosen = config.weights
    return weight_optimizer(
        schedule,
        momentum=chosen.momentum,
        nesterov=chosen.nesterov,
        weight_decay=chosen.weight_decay,
        clip=chosen.clip if clip else 0.0,
    )


def build_alpha_optimizer(config: Any) -> optax.GradientTransformation:
    """Returns Adam for the alphas as `config.alphas` asks for it."""
    chosen = config.alphas
    return alpha_optimizer(
        chosen.learning_rate,
        b1=chosen.b1,
        b2=chosen.b2,
        weight_decay=chosen.weight_decay,
    )


def build_hypergradient(config: Any) -> Callable[..., Hypergradient]:
    """Returns the config's hypergradient with its options bound."""
    chosen = HYPERGRADIENTS[config.hypergradient]
    if config.hypergradient == "finite_difference":
        return partial(chosen, radius=config.finite_difference.radius)
    return chosen


def steps_per_epoch(batch_size: int, number: int, what: str) -> int:
    """Returns how many whole batches `number` images make; the rest is dropped.

    Raises:
        UserError: not even one.
    """
    if batch_size > number:
        raise UserError(
            f"config.batch_size={batch_size} is more than the {number} {what} images; "
            f"choose at most {number}"
        )
    return number // batch_size
