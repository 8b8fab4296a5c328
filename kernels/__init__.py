"""Scans, convolution and norms that the models are made of, and the choice of who computes them."""

if not __name__.startswith("seqkit."):
    raise ImportError("import seqkit.kernels, not kernels")

from seqkit.kernels.conv.function import causal_conv
from seqkit.kernels.dispatch import on_gpu, planning_for_gpu, provider_for
from seqkit.kernels.mamba3.function import mamba3_scan
from seqkit.kernels.mamba3.state import Mamba3State
from seqkit.kernels.mamba3.step import mamba3_step
from seqkit.kernels.norm.function import gated_rms_norm, rms_norm
from seqkit.kernels.selective.function import selective_scan
from seqkit.kernels.selective.inner import selective_inner
from seqkit.kernels.ssd.bidirectional import DirectionOperands, ssd_bidirectional
from seqkit.kernels.ssd.function import ssd_scan
from seqkit.kernels.ssd.inner import ssd_inner
from seqkit.kernels.steps import conv_step, selective_step, ssd_step

__all__ = [
    "DirectionOperands",
    "Mamba3State",
    "causal_conv",
    "conv_step",
    "gated_rms_norm",
    "mamba3_scan",
    "mamba3_step",
    "on_gpu",
    "planning_for_gpu",
    "provider_for",
    "rms_norm",
    "selective_inner",
    "selective_scan",
    "selective_step",
    "ssd_bidirectional",
    "ssd_inner",
    "ssd_scan",
    "ssd_step",
]
