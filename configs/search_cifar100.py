"""Search on CIFAR-100 at the CIFAR-10 setting.

    darts-jax search --config=configs/search_cifar100.py --workdir=runs/s0

Published for searches on CIFAR-100, retrained there (test error): R-DARTS(L2)
18.01 +- 0.26 %, DARTS- 17.51 +- 0.25 %; the DARTS paper has no search on CIFAR-100.
`:tiny` is a two-epoch run of a small supernet on a few images.
"""

import base
import search_cifar10
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """Returns the search on CIFAR-100; arg: "tiny"."""
    base.check_argument(arg, "tiny")
    config = search_cifar10.get_config(arg)
    config.dataset.name = "cifar100"
    return config
