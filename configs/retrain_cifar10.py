"""Train a derived network on CIFAR-10 from scratch: 20 cells, 36 channels, 600 epochs.

    darts-jax retrain --config=configs/retrain_cifar10.py \
        --config.genotype=DARTS_V2 --workdir=runs/t0

Published (Liu et al. 2019, table 1), mean of 10 runs, accuracy of the last epoch:
DARTS_V2 2.76 +- 0.09 % test error, DARTS_V1 3.00 +- 0.14 %, both of 3.3 M parameters;
a random cell 3.29 +- 0.15 %. The settings are those of the authors' train.py.
`:tiny` is a two-epoch run of a small network on a few images.
"""

import base
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """Returns the retraining on CIFAR-10; arg: "tiny"."""
    base.check_argument(arg, "tiny")
    config = base.get_config()
    config.dataset.name = "cifar10"
    config.batch_size = 96
    config.num_epochs = 600
    config.model.num_cells = 20
    config.model.channels = 36
    config.model.auxiliary = True
    config.weights.learning_rate_min = 0.0
    config.batch_norm.evaluation = "running"
    config.batch_norm.stem_affine = True
    config.augmentation.cutout = 16
    config.drop_path = 0.2
    config.auxiliary_weight = 0.4
    config.evaluate_every = 10
    if arg == "tiny":
        base.shrink(config)
    return config
