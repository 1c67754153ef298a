"""Search on the 8x8 digits of scikit-learn: the whole method in minutes on a CPU.

    darts-jax search --config=configs/search_digits.py --workdir=runs/digits

Reproduces nothing published: it shows a search end to end without a download. The data
are 1,797 images of 10 classes. `:tiny` runs in seconds and serves the tests.
"""

import base
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """Returns the search on digits; arg: "tiny"."""
    base.check_argument(arg, "tiny")
    config = base.get_config()
    config.dataset.name = "digits"
    config.batch_size = 64
    config.num_epochs = 12
    config.model.num_cells = 3
    config.model.channels = 8
    config.alphas.learning_rate = (
        3e-3  # ten times the paper's, for a 160th of its steps
    )
    config.augmentation.crop_padding = 1
    config.augmentation.flip = False  # a mirrored digit is another digit, or none
    config.log_every_steps = 5
    if arg != "tiny":
        config.checkpoint_every = 5  # an epoch takes a second or two
    else:
        base.shrink_search(config)
    return config
