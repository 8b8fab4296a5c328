"""Join scored parts in the order given: ``python gather.py OUT.vcf.gz PART.vcf.gz ...``; also .vcf and .bcf."""

import sys

import pysam
from pysam import bcftools

out, *parts = sys.argv[1:]
kind = "b" if out.endswith(".bcf") else "z" if out.endswith(".gz") else "v"
bcftools.concat("--no-version", f"-O{kind}", "-o", out, *parts, catch_stdout=False)
if kind != "v":
    pysam.tabix_index(out, preset="bcf" if kind == "b" else "vcf", csi=True, force=True)
