"""Search on CIFAR-10 as DARTS did: 8 cells, 16 channels, 50 epochs.

    darts-jax search --config=configs/search_cifar10.py --workdir=runs/s0
    darts-jax search --config=configs/search_cifar10.py:second_order --workdir=runs/s1

Published (Liu et al. 2019, table 1), after retraining the best of 4 searches 10 times:
first order (DARTS_V1) 3.00 +- 0.14 % test error, second order (V2) 2.76 +- 0.09 %.
Published mean over 4 first-order searches (ROME, table 2): 3.38 +- 0.23 %.
`:second_order` is the paper's finite difference, `:unrolled` the same gradient exactly;
`--config.preset=paper` follows the text where the authors' program differs.
`:tiny` is a two-epoch run of a small supernet on a few images.
"""

import base
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """Returns the search on CIFAR-10; arg: "second_order", "unrolled" or "tiny"."""
    base.check_argument(arg, "second_order", "unrolled", "tiny")
    config = base.get_config()
    config.dataset.name = "cifar10"
    if arg == "second_order":
        config.hypergradient = "finite_difference"
    if arg == "unrolled":
        config.hypergradient = "unrolled"
    if arg == "tiny":
        base.shrink_search(config)
    return config
