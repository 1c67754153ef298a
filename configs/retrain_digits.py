"""Retrain a genotype on the 8x8 digits of scikit-learn, in minutes on a CPU.

    darts-jax retrain --config=configs/retrain_digits.py \
        --config.genotype=runs/digits/genotype.json --workdir=runs/digits_retrain
    darts-jax retrain --config=configs/retrain_digits.py --config.genotype=random \
        --config.genotype_seed=1 --workdir=runs/digits_random1

Reproduces nothing published. The second command trains a random genotype of the same
space, the baseline that a search has to beat. `:tiny` serves the tests.
"""

import base
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """Returns the retraining on digits; arg: "tiny"."""
    base.check_argument(arg, "tiny")
    config = base.get_config()
    config.dataset.name = "digits"
    config.batch_size = 64
    config.num_epochs = 15
    config.model.num_cells = 4
    config.model.channels = 16
    config.weights.learning_rate_min = 0.0
    config.batch_norm.evaluation = "running"
    config.batch_norm.stem_affine = True
    config.drop_path = 0.1
    config.augmentation.crop_padding = 1
    config.augmentation.flip = False  # a mirrored digit is another digit, or none
    config.log_every_steps = 5
    if arg != "tiny":
        config.checkpoint_every = 5  # an epoch takes a second or two
    else:
        base.shrink(config)
    return config
