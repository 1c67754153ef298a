"""First-order DARTS on the cell of NAS-Bench-201, at the setting of NATS-Bench.

    darts-jax search --config=configs/search_nb201.py --workdir=runs/s0

Published (Dong and Yang 2020): the search collapses to skip connections, whose test
accuracies are 54.30 +- 0 % (CIFAR-10), 15.61 % (CIFAR-100), 16.32 % (ImageNet16-120);
the best cell has 94.37, 73.51 and 47.31 %. The weights are updated before the alphas. As
there, batch norm in the cells has no affine part and always uses the statistics of the batch;
that of the stem, the residual blocks and the last one has, and keeps running ones.
All that `preset` decides is set here, so it changes nothing. `:tiny` is a two-epoch run of a
small supernet on a few images.
"""

import base
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """Returns the search on NAS-Bench-201; arg: "tiny"."""
    base.check_argument(arg, "tiny")
    config = base.get_config()
    config.space = "nas_bench_201"
    config.dataset.name = "cifar10"
    config.num_epochs = 100
    config.model.num_cells = 5  # cells in each of the three stages
    config.model.channels = 16
    config.model.stem_multiplier = 1
    config.weights.learning_rate_min = 0.001
    config.weights.nesterov = True
    config.weights.weight_decay = 5e-4
    config.alphas.init_scale = 1e-3
    config.alphas.order = "weights_first"
    config.batch_norm.evaluation = "batch_in_cells"
    config.batch_norm.stem_affine = True
    if arg == "tiny":
        base.shrink(config)
        config.model.num_cells = 1
    return config
