"""Train a derived network on ImageNet from scratch: 14 cells, 48 channels, 250 epochs.

    darts-jax retrain --config=configs/retrain_imagenet.py --config.genotype=DARTS_V2 \
        --config.dataset.path=PATH_OF_IMAGENET --workdir=runs/t0

The path holds a folder a split (train, test) with a folder of images a class.
Published (Liu et al. 2019, table 3): DARTS_V2 26.7 % top-1 and 8.7 % top-5 error,
4.7 M parameters, 574 M multiply-adds. The settings are those of the authors'
train_imagenet.py. `:tiny` is a two-epoch run of a small network on a few images.
"""

import base
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """Returns the retraining on ImageNet; arg: "tiny"."""
    base.check_argument(arg, "tiny")
    config = base.get_config()
    config.dataset.name = "folder"
    config.dataset.image_size = 224
    config.batch_size = 128
    config.num_epochs = 250
    config.model.num_cells = 14
    config.model.channels = 48
    config.model.auxiliary = True
    config.model.stem = "imagenet"
    config.weights.learning_rate = 0.1
    config.weights.learning_rate_min = 0.0
    config.weights.schedule = "exponential"
    config.weights.decay = 0.97
    config.weights.weight_decay = 3e-5
    config.batch_norm.evaluation = "running"
    config.batch_norm.stem_affine = True
    config.augmentation.name = "resized_crop"
    config.drop_path = 0.0
    config.auxiliary_weight = 0.4
    config.label_smoothing = 0.1
    config.evaluate_every = 5
    if arg == "tiny":
        base.shrink(config)
    return config
