"""Every field of an experiment, named once, with its unit; other files change values.

A field is overridden on the command line by `--config.weights.learning_rate=0.05`. The
fields left to the preset follow `preset`, once every override is known: "code" is what
the authors' program does, "paper" what their text says, where the two differ.
"""

from ml_collections import ConfigDict, config_dict

from darts_jax.errors import unknown


def check_argument(arg: str, *choices: str) -> None:
    """Raises UserError where `arg` of `--config=FILE:arg` is no choice and not ""."""
    if arg and arg not in choices:
        raise unknown("config argument", arg, choices or ["(none)"])


def shrink(config: ConfigDict) -> None:
    """Makes a run last seconds: a few images, two epochs, 3 cells of 4 channels."""
    config.batch_size = 8
    config.num_epochs = 2
    config.dataset.limit = 64
    config.dataset.test_limit = 32
    config.model.num_cells = 3
    config.model.channels = 4
    config.checkpoint_every = 1
    config.tensorboard = False


def shrink_search(config: ConfigDict) -> None:
    """Makes a search last seconds: `shrink`, 2 nodes a cell, 3 primitives an edge."""
    shrink(config)
    config.model.num_nodes = 2
    config.model.primitives = ("none", "skip_connect", "sep_conv_3x3")


def get_config(arg: str = "") -> ConfigDict:
    """Returns the fields that `search` and `retrain` share, at the search's values."""
    check_argument(arg)
    config = ConfigDict()
    config.seed = 0  # seeds initialisation, order of the data and augmentation
    config.num_seeds = 1  # runs with seed, seed + 1, ...: folders seed0, seed1, ...
    config.preset = (
        "code"  # "code" or "paper": where the authors' program and text differ
    )
    config.space = "darts"  # a name in darts_jax/spaces
    config.one_shot = "darts"  # a name in darts_jax/one_shot: the search method
    config.hypergradient = "first_order"  # or "unrolled" (exact), "finite_difference"
    config.batch_size = 64  # images a step, for the weights and for the alphas each
    config.num_epochs = 50  # passes over the part of the data that trains the weights
    config.precision = "float32"  # or "bfloat16": the type of activations
    config.accumulate = 1  # parts of a batch, computed one after another: less memory
    config.dataset = _dataset()
    config.model = _model()
    config.weights = _weights()
    config.alphas = _alphas()
    config.batch_norm = _batch_norm()
    config.finite_difference = ConfigDict({"radius": 0.01})  # epsilon = radius / ||v||
    config.augmentation = _augmentation()
    config.parallel = _parallel()
    _add_retrain(config)
    _add_bookkeeping(config)
    return config.lock()  # a name that is not here is a mistake in a file, too


def _dataset() -> ConfigDict:
    dataset = ConfigDict()
    dataset.name = "cifar10"  # a name in darts_jax/data
    dataset.path = ""  # the files of a data set that is read from a path ("folder")
    dataset.data_dir = ""  # where prepared sets lie; empty: the user's default folder
    dataset.image_size = 0  # pixels a side, for sets of mixed sizes; 0: as stored
    dataset.limit = 0  # use only so many training images; 0: all
    dataset.test_limit = 0  # use only so many test images; 0: all
    dataset.train_fraction = (
        0.5  # search: share that trains the weights, rest the alphas
    )
    dataset.fraction = 1.0  # share of every class's training images that is used
    dataset.subset_seed = 0  # which images those are, where fraction is below 1
    dataset.mean = ()  # a channel, of images / 255; empty: measured
    dataset.std = ()  # a channel, as mean; both or neither
    dataset.streaming = "auto"  # or "always", "never": leave the images on disk
    dataset.resident_gib = 4.0  # GiB of decoded images; "auto" streams what has more
    dataset.workers = 4  # threads that decode a stream; 0: the training thread
    dataset.prefetch = 2  # batches of a stream on the device ahead of the step
    dataset.test_crop = 1.0  # streamed: share of a side that a test image's crop keeps
    return dataset


def _model() -> ConfigDict:
    model = ConfigDict()
    model.num_nodes = 0  # intermediate nodes of a cell; 0: the space's own number
    model.num_cells = 8  # cells in a row; the reduction cells stand at 1/3 and 2/3
    model.channels = 16  # channels of the first cell's nodes
    model.stem_multiplier = 3  # times channels: the CIFAR stem's, in space darts
    model.primitives = ()  # a subset of the space's primitives; empty: all of them
    model.edge_primitives = (
        ""  # a JSON file with the primitives of each edge; empty: none
    )
    model.auxiliary = (
        False  # retrain: a second head at 2/3 of the depth, while training
    )
    # "fused": the fastest operations known for the device; "plain": one module a primitive,
    # the oracle; "merged": few, large matrix products, what a supernet is without kernels.
    model.implementation = "fused"
    model.stem = (
        "cifar"  # "cifar": one convolution; "imagenet": three, each of stride 2
    )
    model.remat = False  # compute cells again in the backward pass: less memory
    return model


def _weights() -> ConfigDict:
    weights = ConfigDict()
    weights.learning_rate = 0.025  # of SGD, at epoch 0
    weights.learning_rate_min = config_dict.placeholder(float)  # code 0.001, paper 0
    weights.momentum = 0.9
    weights.nesterov = False
    weights.weight_decay = 3e-4  # coupled L2, added after the clipping
    weights.clip = 5.0  # largest global norm of the gradient; 0: no clipping
    weights.schedule = "cosine"  # or "exponential", "constant"; changes once an epoch
    weights.decay = 0.97  # "exponential": the factor of an epoch
    return weights


def _alphas() -> ConfigDict:
    alphas = ConfigDict()
    alphas.learning_rate = 3e-4  # of Adam
    alphas.b1 = 0.5
    alphas.b2 = 0.999
    alphas.weight_decay = 1e-3  # coupled L2, added before Adam's scaling
    alphas.init_scale = config_dict.placeholder(float)  # std: code 1e-3, paper 0
    alphas.order = (
        "alphas_first"  # or "weights_first": which half of a step comes first
    )
    return alphas


def _batch_norm() -> ConfigDict:
    batch_norm = ConfigDict()
    # search: statistics when not training; code "running", paper "batch"; "batch_in_cells"
    batch_norm.evaluation = config_dict.placeholder(str)
    batch_norm.stem_affine = config_dict.placeholder(
        bool
    )  # search: code True, paper False
    batch_norm.groups = 1  # parts of a batch with moments of their own; 1: all as one
    return batch_norm


def _parallel() -> ConfigDict:
    parallel = ConfigDict()
    parallel.devices = 0  # devices to use; 0: all
    parallel.seeds = "auto"  # or "together" (one program), "in_turn" (auto on CPUs)
    parallel.seed_devices = (
        0  # of the devices, along the seeds of one program; 0: choose
    )
    parallel.steps_per_call = 0  # steps a call; 0: log_every_steps, on CPUs 1
    return parallel


def _augmentation() -> ConfigDict:
    augmentation = ConfigDict()
    augmentation.name = "crop_flip"  # or "resized_crop" (ImageNet)
    augmentation.crop_padding = 4  # pixels a side
    augmentation.flip = True  # left and right, with probability 1/2
    augmentation.cutout = (
        0  # pixels a side of the square set to zero, rounded down to even; 0: none
    )
    return augmentation


def _add_retrain(config: ConfigDict) -> None:
    config.genotype = ""  # retrain: a JSON file, a name in the zoo, a text, or "random"
    config.genotype_seed = 0  # retrain: which one, where the genotype is "random"
    config.drop_path = (
        0.0  # retrain: probability times epoch / num_epochs, so 0 at first
    )
    config.auxiliary_weight = 0.4  # retrain: of the auxiliary head's loss
    config.label_smoothing = 0.0  # retrain: probability spread over all classes
    # Epochs between tests of a retraining (0: only at the end), or of a search between
    # evaluations of the supernet on the alphas' images (0: only at the end).
    config.evaluate_every = 0


def _add_bookkeeping(config: ConfigDict) -> None:
    config.checkpoint_every = 1  # epochs
    config.keep_checkpoints = 2  # the latest so many
    config.log_every_steps = 50  # steps between two updates of the progress line
    config.progress = True  # a progress line on the terminal
    config.tensorboard = True  # also write TensorBoard event files
