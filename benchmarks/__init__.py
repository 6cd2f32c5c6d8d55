"""Micro-benchmarks (``pytest benchmarks``), result files, and ``python -m benchmarks``, which is ``mobilevit-kernels
bench``."""
