"""Every launch of a whole block compiles for a card that is not here: real strides, alignments and dtypes.

The driver hands kernels to the compiler as Triton does, then loads and launches nothing: numbers mean nothing here.
"""

import os
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from seqkit.backbones import Backbone, BackboneConfig
from seqkit.kernels import devices, dispatch

if not dispatch.triton_installed() or os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("needs Triton, and not its interpreter", allow_module_level=True)
if torch.cuda.is_available():
    pytest.skip("stands in for a GPU where there is none", allow_module_level=True)

from triton.backends.compiler import GPUTarget
from triton.runtime import driver

CARD = (9, 0)
LAUNCHED = Counter()  # by the name of the kernel; of the module, because compiled kernels outlive a test
KERNELS = {
    "mamba1": {"summary_kernel", "chain_kernel", "output_kernel", "adjoint_kernel", "gradient_kernel"},
    "mamba2": {"step_kernel", "sweep_kernel", "output_kernel", "token_kernel", "weight_kernel", "norm_sum_kernel"},
}


class CompilingDriver:
    """What Triton asks of a driver; its launches count."""

    utils = SimpleNamespace(
        load_binary=lambda name, binary, shared, device: (None, 0, 0, 0, 1024),
        get_device_properties=lambda device: {"max_shared_mem": devices.ROWS[CARD].shared_memory},
    )

    def get_current_device(self):
        return torch.empty(0).get_device()

    def get_current_target(self):
        return GPUTarget("cuda", CARD[0] * 10 + CARD[1], 32)

    def get_current_stream(self, device):
        return 0

    def launcher_cls(self, source, metadata):
        return lambda *args: LAUNCHED.update([metadata.name])


@pytest.fixture
def compiling(monkeypatch):
    monkeypatch.setattr(driver, "_active", CompilingDriver())
    monkeypatch.setattr(dispatch, "provider_for", lambda op, *operands: "triton")
    monkeypatch.setattr(devices, "_capability", lambda index: CARD)


@pytest.mark.slow
@pytest.mark.usefixtures("compiling")
@pytest.mark.parametrize("mixer", KERNELS)
def test_a_block_of_both_directions(mixer):
    """In slabs, forward and backward; the second step launches what the first one did."""
    torch.manual_seed(0)
    settings = {"bidirectional": True, "checkpoint": True, "slab": 64}
    config = BackboneConfig(d_model=64, layout=mixer, vocab_size=8, **settings)
    model, counts = Backbone(config).to(torch.bfloat16), []
    for _ in range(2):
        LAUNCHED.clear()
        hidden, _ = model(torch.randint(8, (1, 128)))
        hidden.float().sum().backward()
        counts.append(dict(LAUNCHED))
    assert counts[0] == counts[1]
    assert counts[0].keys() >= KERNELS[mixer] | {"conv_forward_kernel", "conv_gradient_kernel", "norm_kernel"}
