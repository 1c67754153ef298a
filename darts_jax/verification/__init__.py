"""Agreement with the PyTorch reference: golden vectors against our networks, in float64.

A golden file is an .npz with the reference's weights, inputs, outputs and gradients. What a
file holds decides what is checked, never its name; sizes and genotypes are read from it.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from darts_jax.errors import UserError, unknown
from darts_jax.verification.golden import Check, Golden
from darts_jax.verification.network import verify_network
from darts_jax.verification.operations import verify_operations
from darts_jax.verification.supernet import verify_search

# What numpy raises for an empty file, no archive, a cut one, an .npy file, an object array.
UNREADABLE = (OSError, EOFError, ValueError, TypeError, BadZipFile, zlib.error)


def _is_recurrent(golden: Golden) -> bool:
    return any("encoder.weight" in key for key in golden)


# What a file is, by a key that only its kind has; the first that fits.
VERIFIERS: dict[
    str, tuple[Callable[[Golden], bool], Callable[..., Iterator[Check]]]
] = {
    "supernet": (lambda g: "params_index_json" in g, verify_search),
    "derived network": (lambda g: "w/classifier.weight" in g, verify_network),
    "operations": (lambda g: any("/cotangent" in k for k in g), verify_operations),
}


def golden_files(directory: Path, names: Sequence[str] = ()) -> list[Path]:
    """Returns the .npz files of a folder of golden vectors, by name.

    Args:
        directory: the folder.
        names: only these of its files; all of them by default.

    Raises:
        UserError: there is no such folder, no such file, or none in it.
    """
    if not directory.is_dir():
        raise UserError(f"no folder {str(directory)!r} of golden vectors")
    files = sorted(directory.glob("*.npz"))
    if not files:
        raise UserError(f"no .npz file in {str(directory)!r}")
    for name in names:
        if name not in [path.name for path in files]:
            raise unknown(f"file of {directory}", name, [path.name for path in files])
    return [path for path in files if not names or path.name in names]


def verify_file(path: Path) -> tuple[str, Iterator[Check]]:
    """Returns (kind of the file, its checks); ("recurrent", nothing) for those we skip.

    Raises:
        UserError: the file is no golden file.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            golden = Golden({key: archive[key] for key in archive.files})
    except UNREADABLE as error:
        raise UserError(f"{path.name} is not a readable .npz file: {error}") from None
    if _is_recurrent(golden):
        return "recurrent", iter(())
    for kind, (fits, verify) in VERIFIERS.items():
        if fits(golden):
            return kind, verify(golden)
    raise UserError(f"{path.name} holds none of: {', '.join(VERIFIERS)}")
