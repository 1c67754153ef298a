"""The genotype of a retraining: what its config names, and what its run began with."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from darts_jax.errors import UserError
from darts_jax.genotype import Genotype, load, load_genotype
from darts_jax.spaces import random_genotype
from darts_jax.training import setup
from darts_jax.training.run_directory import RunDirectory


def choose_genotype(config: Any) -> Genotype:
    """Returns the genotype that `config.genotype` names, or draws the random one.

    Raises:
        UserError: as `genotype.load_genotype` does.
    """
    if config.genotype == "random":
        rng = np.random.default_rng(config.genotype_seed)
        return random_genotype(setup.build_space(config), rng)
    return load_genotype(config.genotype)


def genotype_of(runs: Sequence[RunDirectory], config: Any) -> Genotype:
    """Returns the genotype of the runs: the one that they hold, else the config's.

    A run keeps what it began with: the file that its config names may be gone.

    Raises:
        UserError: they hold different ones or another than the config names now, or as
            `choose_genotype` does.
    """
    stored = [run.path / "genotype.json" for run in runs if run.resumed]
    held = {load(path) for path in stored if path.exists()}
    if len(held) > 1:
        raise UserError(
            f"the seeds in {runs[0].path.parent} hold different genotypes; retrain them "
            "in folders of their own"
        )
    if not held:
        return choose_genotype(config)
    genotype = held.pop()
    try:
        named = choose_genotype(config)
    except UserError:
        return genotype
    if named != genotype:
        raise UserError(
            f"{runs[0].path} was started with another genotype than "
            f"{config.genotype:.80} is now; name another --workdir"
        )
    return genotype
