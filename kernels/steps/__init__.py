"""One token at a time: the recurrences of the scans and the convolution, O(1) per token."""

from seqkit.kernels.steps.function import conv_step, selective_step, ssd_step

__all__ = ["conv_step", "selective_step", "ssd_step"]
