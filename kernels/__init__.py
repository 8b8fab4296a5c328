if not __name__.startswith("seqkit."):
    raise ImportError("import seqkit.kernels, not kernels")
