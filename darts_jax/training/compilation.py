"""A training step as the compiled program that the loop calls."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from darts_jax.training.parallel import SEED, Layout, any_process


def compile_steps(
    step: Callable[..., Any], layout: Layout, at_once: int, *, remat: bool = False
) -> Any:
    """Returns the jitted `(state, sums, order, data, count) -> (state, sums)`.

    step: `(state, sums, order, data) -> (state, sums)`, one training step of one run.
    at_once: more than 1: `count` steps, at most so many, are one call, a loop on the device,
        so that the host is not asked between them; 1: every call is one step (XLA:CPU takes
        longer to compile what is in a loop: benchmarks/NOTES.md).
    remat: whether parts of the step are to be computed again.
    """
    options = {}
    if remat and jax.default_backend() == "cpu":
        # XLA:CPU would drop the barriers that hold what is computed again apart from what was
        # computed before, and merge the two: nothing saved.
        options = {"xla_disable_hlo_passes": "cse_barrier_expander"}

    def once(state: Any, sums: Any, order: Any, data: Any) -> Any:
        if not layout.seeds:
            return step(state, sums, order, data)
        mapped = jax.vmap(step, (0, 0, 0, None), spmd_axis_name=SEED)
        return mapped(state, sums, order, data)

    shardings = (layout.state, layout.state)

    @partial(
        jax.jit,
        donate_argnums=(0, 1),
        out_shardings=shardings,
        compiler_options=options,
    )
    def steps(state: Any, sums: Any, order: Any, data: Any, count: Any) -> Any:
        if at_once == 1:
            return once(state, sums, order, data)

        def body(_: Any, carry: Any) -> Any:
            state, sums = carry
            return once(state, sums, order, data)

        return jax.lax.fori_loop(0, count, body, (state, sums))

    return steps


def compiled_together(program: Any, *arguments: Any) -> Any:
    """Returns the program, compiled in every process before any of them runs it.

    A process that is through first would wait for the others in its first sum, which Gloo
    (on CPUs) gives up after 30 seconds; a large program takes minutes.
    """
    if jax.process_count() == 1:
        return program
    compiled = program.lower(*arguments).compile()
    any_process(False)
    return compiled


def steps_at_once(config: Any, streamed: bool) -> int:
    """Returns how many steps a compiled call makes at most: `parallel.steps_per_call`."""
    if streamed:
        return 1  # every step waits for its own batch
    chosen = config.parallel.steps_per_call
    return chosen or (1 if jax.default_backend() == "cpu" else config.log_every_steps)
