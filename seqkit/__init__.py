"""Mamba models for genomes and time series of a million steps."""

__version__ = "0.1.0"
__all__ = ["Forecaster", "__version__", "score_variants"]

_LAZY = {"Forecaster": "seqkit.commands.forecaster", "score_variants": "seqkit.commands.variant_scores"}


def __getattr__(name: str):
    # Importing seqkit loads neither torch nor polars; what needs them is found when it is asked for.
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
