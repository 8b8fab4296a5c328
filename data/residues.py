"""Properties of amino acids, one table for all features."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

RESIDUES = "ACDEFGHIKLMNPQRSTVWY"

_HELIX = {
    "A": 0.0, "L": 0.21, "R": 0.21, "M": 0.24, "K": 0.26, "Q": 0.39, "E": 0.40, "I": 0.41, "W": 0.49, "S": 0.50,
    "Y": 0.53, "F": 0.54, "H": 0.61, "V": 0.61, "N": 0.65, "T": 0.66, "C": 0.68, "D": 0.69, "G": 1.0, "P": 3.16,
}  # fmt: skip
_VOLUME = {
    "A": 88.6, "R": 173.4, "N": 114.1, "D": 111.1, "C": 108.5, "Q": 143.8, "E": 138.4, "G": 60.1, "H": 153.2,
    "I": 166.7, "L": 166.7, "K": 168.6, "M": 162.9, "F": 189.9, "P": 112.7, "S": 89.0, "T": 116.1, "W": 227.8,
    "Y": 193.6, "V": 140.0,
}  # fmt: skip
# Composition, polarity and volume of Grantham's distance.
_GRANTHAM = {
    "S": (1.42, 9.2, 32), "R": (0.65, 10.5, 124), "L": (0, 4.9, 111), "P": (0.39, 8.0, 32.5), "T": (0.71, 8.6, 61),
    "A": (0, 8.1, 31), "V": (0, 5.9, 84), "G": (0.74, 9.0, 3), "I": (0, 5.2, 111), "F": (0, 5.2, 132),
    "Y": (0.20, 6.2, 136), "C": (2.75, 5.5, 55), "H": (0.58, 10.4, 96), "Q": (0.89, 10.5, 85), "N": (1.33, 11.6, 56),
    "K": (0.33, 11.3, 119), "D": (1.38, 13.0, 54), "E": (0.92, 12.3, 83), "M": (0, 5.7, 105), "W": (0.13, 5.4, 170),
}  # fmt: skip
_GRANTHAM_WEIGHTS = (1.833, 0.1018, 0.000399)
_GRANTHAM_SCALE = 50.723
_CHARGE = {"K": 1.0, "R": 1.0, "D": -1.0, "E": -1.0}


@lru_cache(maxsize=1)
def properties() -> dict[str, np.ndarray]:
    """Properties by name, each float32 (256,) indexed by the ASCII code of a residue; 0 for anything else.

    ``hydropathy`` (-4.5 to 4.5), ``volume`` in cubic angstrom, ``charge`` at neutral pH, ``helix`` (kcal/mol above
    alanine), ``polarity`` (4.9 to 13), ``aromatic``.

    Reference: Kyte and Doolittle (1982); Zamyatnin (1972); Pace and Scholtz (1998); Grantham (1974).
    """
    from Bio.SeqUtils.ProtParamData import kd

    tables = {
        "hydropathy": kd,
        "volume": _VOLUME,
        "charge": _CHARGE,
        "helix": _HELIX,
        "polarity": {residue: values[1] for residue, values in _GRANTHAM.items()},
        "aromatic": dict.fromkeys("FWYH", 1.0),
    }
    out = {}
    for name, table in tables.items():
        out[name] = np.zeros(256, dtype=np.float32)
        for residue, value in table.items():
            out[name][ord(residue)] = value
    return out


@lru_cache(maxsize=1)
def blosum62() -> np.ndarray:
    """BLOSUM62 scores, float32 (256, 256) indexed by ASCII codes; a stop counts as in the matrix, unknown is 0."""
    from Bio.Align import substitution_matrices

    matrix = substitution_matrices.load("BLOSUM62")
    out = np.zeros((256, 256), dtype=np.float32)
    letters = RESIDUES + "*"
    for a in letters:
        for b in letters:
            out[ord(a), ord(b)] = matrix[a][b]
    return out


@lru_cache(maxsize=1)
def grantham() -> np.ndarray:
    """Grantham's distance, float32 (256, 256) indexed by ASCII codes; 0 where either is no residue.

    Reference: Grantham (1974), Science 185, 862-864.
    """
    out = np.zeros((256, 256), dtype=np.float32)
    for a, first in _GRANTHAM.items():
        for b, second in _GRANTHAM.items():
            squares = (w * (x - y) ** 2 for w, x, y in zip(_GRANTHAM_WEIGHTS, first, second, strict=True))
            out[ord(a), ord(b)] = _GRANTHAM_SCALE * sum(squares) ** 0.5
    return out
