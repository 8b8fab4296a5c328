"""Time the ops, provider beside provider: ``python -m seqkit.kernels.bench``, or ``seqkit bench kernels``.

A provider is timed only if its values and gradients agree with float64 at the very sizes that are timed. What the
machine reaches at best (copying, exponentials, matrix products) is measured in the same run, and every row says how
close it comes.
"""

from seqkit.kernels.bench.command import main

__all__ = ["main"]
