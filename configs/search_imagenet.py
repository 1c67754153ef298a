"""Search on a class-balanced eighth of ImageNet's training images, streamed from disk.

    darts-jax search --config=configs/search_imagenet.py \
        --config.dataset.path=PATH_OF_IMAGENET --workdir=runs/s0

The path holds a folder a split (train, test) with a folder of images a class, or the
imagenet2012 set as tensorflow-datasets prepares it (array_record files).
The data are those of PC-DARTS (Xu et al. 2020, section 4.3): of every class 10 % of the
training images for the weights and another 2.5 % for the alphas; so are image size, stem,
batch, epochs and learning rates. Reproduces nothing published: the method is first-order
DARTS with all channels and alphas from the first epoch on (there: a quarter of the channels,
alphas from epoch 35 on). PC-DARTS retrained its cell to 24.2 % top-1 and 7.3 % top-5 error.
A batch of 1024 needs several GPUs; `--dry-run` says how much memory, `accumulate` saves some.
`:tiny` is a two-epoch run of a small supernet on a few images.
"""

import base
import retrain_imagenet
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """Returns the search on ImageNet; arg: "tiny"."""
    base.check_argument(arg, "tiny")
    config = base.get_config()
    retrain_imagenet.stream(config, image_size=224)
    config.model.stem = "imagenet"
    config.dataset.fraction = 0.125
    config.dataset.train_fraction = 0.8  # 10 % of all for the weights, 2.5 % the alphas
    config.batch_size = 1024
    config.num_epochs = 50
    config.weights.learning_rate = 0.5
    config.weights.learning_rate_min = 0.0
    config.alphas.learning_rate = 6e-3
    if arg == "tiny":
        base.shrink_search(config)
        config.dataset.fraction = 0.5
        config.dataset.train_fraction = 0.5
        config.dataset.image_size = 32
    return config
