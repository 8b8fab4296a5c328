"""Properties of amino acids, one table for all features."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

RESIDUES = "ACDEFGHIKLMNPQRSTVWY"

# Share of the residue's surface that is buried in folded proteins.
_BURIED = {
    "A": 0.74, "R": 0.64, "N": 0.63, "D": 0.62, "C": 0.91, "Q": 0.62, "E": 0.62, "G": 0.72, "H": 0.78, "I": 0.88,
    "L": 0.85, "K": 0.52, "M": 0.85, "F": 0.88, "P": 0.64, "S": 0.66, "T": 0.70, "W": 0.85, "Y": 0.76, "V": 0.86,
}  # fmt: skip
# Frequency in helices and in strands over that in all of a protein.
_HELIX = {
    "A": 1.42, "R": 0.98, "N": 0.67, "D": 1.01, "C": 0.70, "Q": 1.11, "E": 1.51, "G": 0.57, "H": 1.00, "I": 1.08,
    "L": 1.21, "K": 1.16, "M": 1.45, "F": 1.13, "P": 0.57, "S": 0.77, "T": 0.83, "W": 1.08, "Y": 0.69, "V": 1.06,
}  # fmt: skip
_STRAND = {
    "A": 0.83, "R": 0.93, "N": 0.89, "D": 0.54, "C": 1.19, "Q": 1.10, "E": 0.37, "G": 0.75, "H": 0.87, "I": 1.60,
    "L": 1.30, "K": 0.74, "M": 1.05, "F": 1.38, "P": 0.55, "S": 0.75, "T": 1.19, "W": 1.37, "Y": 1.47, "V": 1.70,
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


@lru_cache(maxsize=1)
def properties() -> dict[str, np.ndarray]:
    """Properties by name, each float32 (256,) indexed by the ASCII code of a residue; 0 for anything else.

    ``hydropathy`` (-4.5 to 4.5), ``volume`` in cubic angstrom, ``buried`` (0 to 1), ``helix`` and ``strand``
    (preference, 1 is average).

    Reference: Kyte and Doolittle (1982); Zamyatnin (1972); Rose et al. (1985); Chou and Fasman (1978).
    """
    from Bio.SeqUtils.ProtParamData import kd

    tables = {"hydropathy": kd, "volume": _VOLUME, "buried": _BURIED, "helix": _HELIX, "strand": _STRAND}
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
