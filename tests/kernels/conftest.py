import pytest
import torch

from seqkit.kernels import dispatch

PROVIDERS = ("reference", "triton")


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
    if name != "reference":
        _skip_where_it_cannot_run(name, request)
    monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, name)
    return name


def _skip_where_it_cannot_run(name: str, request) -> None:
    parameters = request.node.callspec.params
    op = parameters.get("op") or ("ssd_scan" if "ssd" in request.function.__name__ else None)
    if op and op not in dispatch.PROVIDERS[name]:
        pytest.skip(f"provider {name} has no {op}")
    if torch.float64 in parameters.values():
        pytest.skip("float64 is the reference's")
    if parameters.get("device") == "cpu":
        pytest.skip("Triton runs on a CPU in its interpreter only: see test_interpreter.py")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request) -> str:
    """Device a provider is tested on."""
    return request.param
