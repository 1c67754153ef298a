"""Differentiable architecture search in JAX: search, derive, retrain, report."""

__version__ = "0.1.0"
