if not __name__.startswith("seqkit."):
    raise ImportError("import seqkit.data, not data")
