"""Facts by which an assembly is recognised: chromosome lengths, RefSeq accessions, shifts between assemblies."""

from __future__ import annotations

MITOCHONDRIA = frozenset({"M", "MT", "MITO", "NC_012920", "CHRMT"})

_HUMAN = (*(str(i) for i in range(1, 23)), "X", "Y")
_MOUSE = (*(str(i) for i in range(1, 20)), "X", "Y")

ACCESSIONS: dict[str, str] = {
    **{f"NC_{i:06d}": name for i, name in enumerate(_HUMAN, start=1)},
    **{f"NC_{60924 + i:06d}": name for i, name in enumerate(_HUMAN, start=1)},
    **{f"NC_{66 + i:06d}": name for i, name in enumerate(_MOUSE, start=1)},
    "NC_012920": "MT",
    "NC_005089": "MT",
}


def _lengths(names: tuple[str, ...], text: str) -> dict[str, int]:
    return dict(zip(names, map(int, text.split()), strict=True))


CHROMOSOME_LENGTHS: dict[str, dict[str, int]] = {
    "GRCh37": _lengths(
        _HUMAN,
        "249250621 243199373 198022430 191154276 180915260 171115067 159138663 146364022 141213431 135534747 135006516 "
        "133851895 115169878 107349540 102531392 90354753 81195210 78077248 59128983 63025520 48129895 51304566 "
        "155270560 59373566",
    ),
    "GRCh38": _lengths(
        _HUMAN,
        "248956422 242193529 198295559 190214555 181538259 170805979 159345973 145138636 138394717 133797422 135086622 "
        "133275309 114364328 107043718 101991189 90338345 83257441 80373285 58617616 64444167 46709983 50818468 "
        "156040895 57227415",
    ),
    "T2T-CHM13": _lengths(
        _HUMAN,
        "248387328 242696752 201105948 193574945 182045439 172126628 160567428 146259331 150617247 134758134 135127769 "
        "133324548 113566686 101161492 99753195 96330374 84276897 80542538 61707364 66210255 45090682 51324926 "
        "154259566 62460029",
    ),
    "mm10": _lengths(
        _MOUSE,
        "195471971 182113224 160039680 156508116 151834684 149736546 145441459 129401213 124595110 130694993 122082543 "
        "120129022 120421639 124902244 104043685 98207768 94987271 90702639 61431566 171031299 91744698",
    ),
    "mm39": _lengths(
        _MOUSE,
        "195154279 181755017 159745316 156860686 151758149 149588044 144995196 130127694 124359700 130530862 121973369 "
        "120092757 120883175 125139656 104073951 98008968 95294699 90720763 61420004 169476592 91455967",
    ),
}

# Contig, GRCh37 start and end (0-based half-open), GRCh38 position minus GRCh37 position there. Only evidence for an
# error message, and only where the reference itself agrees after the shift.
GRCH37_TO_GRCH38: tuple[tuple[str, int, int, int], ...] = (
    ("17", 41_100_000, 41_352_017, 1_847_983),  # BRCA1
    ("13", 32_889_000, 32_975_000, -574_137),  # BRCA2
    ("17", 7_571_000, 7_591_000, 96_682),  # TP53
    ("7", 117_119_000, 117_309_000, 359_946),  # CFTR
    ("7", 55_086_000, 55_276_000, -67_693),  # EGFR
    ("7", 140_433_000, 140_625_000, 300_200),  # BRAF
    ("12", 25_357_000, 25_404_000, -152_934),  # KRAS
    ("19", 45_409_000, 45_413_000, -503_257),  # APOE
    ("11", 5_246_000, 5_249_000, -21_230),  # HBB
)


def known_shift(contig: str, start: int) -> int | None:
    """GRCh38 position minus GRCh37 position at a 0-based GRCh37 position, where this table knows it."""
    for name, low, high, shift in GRCH37_TO_GRCH38:
        if contig == name and low <= start < high:
            return shift
    return None
