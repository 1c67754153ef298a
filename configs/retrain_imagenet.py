"""Train a derived network on ImageNet from scratch: 14 cells, 48 channels, 250 epochs.

    darts-jax retrain --config=configs/retrain_imagenet.py --config.genotype=DARTS_V2 \
        --config.dataset.path=PATH_OF_IMAGENET --workdir=runs/t0

The path holds a folder a split (train, test) with a folder of images a class, or the
imagenet2012 set as tensorflow-datasets prepares it (array_record files). The images are
streamed: nothing is converted, crops are cut from the files' own sizes.
Published (Liu et al. 2019, table 3): DARTS_V2 26.7 % top-1 and 8.7 % top-5 error,
4.7 M parameters, 574 M multiply-adds. The settings are those of the authors'
train_imagenet.py. `:tiny` is a two-epoch run of a small network on a few images.
"""

import base
from ml_collections import ConfigDict


def stream(config: ConfigDict, image_size: int) -> None:
    """Makes `config` stream ImageNet with the authors' crops, colours and constants."""
    config.dataset.name = "folder"
    config.dataset.image_size = image_size
    config.dataset.streaming = "always"
    config.dataset.workers = 16
    config.dataset.mean = (0.485, 0.456, 0.406)
    config.dataset.std = (0.229, 0.224, 0.225)
    config.dataset.test_crop = 0.875  # 224 of 256
    config.augmentation.name = "resized_crop"


def get_config(arg: str = "") -> ConfigDict:
    """Returns the retraining on ImageNet; arg: "tiny"."""
    base.check_argument(arg, "tiny")
    config = base.get_config()
    stream(config, image_size=224)
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
    config.drop_path = 0.0
    config.auxiliary_weight = 0.4
    config.label_smoothing = 0.1
    config.evaluate_every = 5
    if arg == "tiny":
        base.shrink(config)
        config.dataset.image_size = 32
        config.model.auxiliary = False  # its images would be too small
    return config
