"""One-shot strategies: methods that share weights, one file a method.

A method is an assembly of pure functions along independent axes (`OneShot`). A new method is
one file and one line in `ONE_SHOT`.
"""

from darts_jax.one_shot.darts import DARTS
from darts_jax.one_shot.strategy import OneShot

ONE_SHOT: dict[str, OneShot] = {"darts": DARTS}
