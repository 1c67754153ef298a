"""Train a derived network on CIFAR-100 from scratch, at the CIFAR-10 setting.

    darts-jax retrain --config=configs/retrain_cifar100.py \
        --config.genotype=P_DARTS --workdir=runs/t0

Published (P-DARTS, Chen et al. 2019): its cell found on CIFAR-10 has 16.55 % test error
on CIFAR-100, with batch 128 and drop path 0.3 (override both to compare).
DARTS_V2 at this setting has 3,401,272 parameters; its paper reports no CIFAR-100 error.
`:tiny` is a two-epoch run of a small network on a few images.
"""

import base
import retrain_cifar10
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """Returns the retraining on CIFAR-100; arg: "tiny"."""
    base.check_argument(arg, "tiny")
    config = retrain_cifar10.get_config(arg)
    config.dataset.name = "cifar100"
    return config
