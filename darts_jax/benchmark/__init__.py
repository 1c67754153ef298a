"""The benchmark: one workload at a named size, each implementation in a process of its own.

Nothing here imports jax at import time except `tasks`, so that the PyTorch baseline, which
shares sizes, pipes and memory figures with us, runs without it in its memory.
"""
