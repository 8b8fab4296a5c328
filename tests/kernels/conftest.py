import os

import pytest
import torch

from seqkit.kernels import dispatch

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats its bits only with a fixed workspace
PROVIDERS = ("reference",)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=PROVIDERS)
def provider(request, monkeypatch) -> str:
    """Each provider in turn, asked for by name through the environment variable that users have."""
    name = request.param
    if name not in dispatch.PROVIDERS:
        pytest.skip(f"provider {name} does not exist")
    if name != "reference" and not dispatch.triton_installed():
        pytest.skip(f"provider {name} needs Triton")
    monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, name)
    return name


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request) -> str:
    """Device a provider is tested on."""
    return request.param
