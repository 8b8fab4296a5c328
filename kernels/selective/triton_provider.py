"""The Triton provider of the selective scan."""

from seqkit.kernels.selective.backward import backward
from seqkit.kernels.selective.forward import boundary_shape, forward

__all__ = ["backward", "boundary_shape", "forward"]
