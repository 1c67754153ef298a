"""Compiled kernels for CPUs: C++ through XLA's foreign function interface.

They are built at first use by the machine's own C++ compiler and kept in the user's cache
folder; without a compiler everything works on XLA's own operations, only slower.
"""
