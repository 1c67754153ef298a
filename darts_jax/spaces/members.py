"""The genotypes that belong to a space: membership, and a uniform draw."""

import numpy as np

from darts_jax.errors import UserError, unknown
from darts_jax.genotype import CellGenotype, Genotype
from darts_jax.spaces.space import Space


def check_genotype(genotype: Genotype, space: Space) -> None:
    """Raises UserError unless the genotype is one that `derive` can give for the space.

    Published cells with primitives of their own (NASNet-A) or fewer edges (FairDARTS)
    build networks all the same; only a search and its evaluators need membership.
    """
    if genotype.space != space.skeleton:
        raise UserError(
            f"genotype of space {genotype.space!r}; "
            f"space {space.name} needs {space.skeleton!r}"
        )
    if set(genotype.cells) != set(space.cell_kinds):
        raise UserError(
            f"genotype has the cells {', '.join(genotype.cells)}; "
            f"space {space.name} needs {', '.join(space.cell_kinds)}"
        )
    for kind, cell in genotype.cells.items():
        where = f"{kind} cell in space {space.name}"
        if (cell.num_inputs, len(cell.nodes)) != (space.num_inputs, space.num_nodes):
            raise UserError(
                f"{where}: {cell.num_inputs} inputs and {len(cell.nodes)} nodes; "
                f"needed: {space.num_inputs} and {space.num_nodes}"
            )
        if tuple(sorted(cell.concat)) != space.concat:
            raise UserError(
                f"{where}: concat {list(cell.concat)}; needed: {list(space.concat)}"
            )
        for i, node in enumerate(cell.nodes):
            _check_node(node, space, kind, space.num_inputs + i)


def _check_node(
    node: tuple[tuple[str, int], ...], space: Space, kind: str, target: int
) -> None:
    where = f"{kind} cell in space {space.name}: node {target}"
    needed = space.kept(target)
    if len(node) != needed or len({source for _, source in node}) != needed:
        shown = [source for _, source in node]
        raise UserError(f"{where} has sources {shown}; needed: {needed} different ones")
    incoming = space.incoming(target)
    for op, source in node:
        choices = space.choices(kind, incoming[source])
        if op not in choices:
            raise unknown(f"primitive of edge {source}-{target} ({where})", op, choices)


def random_genotype(space: Space, rng: np.random.Generator) -> Genotype:
    """Returns a uniform draw: per node its sources, per kept edge its primitive."""
    cells = {}
    for kind in space.cell_kinds:
        nodes = []
        for target in range(space.num_inputs, space.num_inputs + space.num_nodes):
            incoming = space.incoming(target)
            # States are contiguous, so the k-th incoming edge starts at source k.
            sources = sorted(
                rng.choice(len(incoming), space.kept(target), replace=False).tolist()
            )
            drawn = [space.choices(kind, incoming[source]) for source in sources]
            names = [ops[int(rng.integers(len(ops)))] for ops in drawn]
            nodes.append(tuple(zip(names, sources, strict=True)))
        cells[kind] = CellGenotype(tuple(nodes), space.concat, space.num_inputs)
    return Genotype(space.skeleton, cells)
