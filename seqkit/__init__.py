"""Mamba models for genomes and time series of a million steps."""

__version__ = "0.1.0"
__all__ = ["__version__"]
