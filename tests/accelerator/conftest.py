"""The suite of machines with an accelerator: `make accelerator`. Elsewhere it is skipped.

`MCANALYSIS_TEST_DEVICE=cpu` runs it on the CPU, to see that the tests themselves run.
"""

import os

import pytest
import torch

from mcanalysis.models.adapter_files import LoraSettings
from mcanalysis.models.loading import default_device, load_base
from mcanalysis.models.lora_model import LoraModel

DEVICE = os.environ.get("MCANALYSIS_TEST_DEVICE", default_device())


def pytest_collection_modifyitems(items):
    if DEVICE != "cpu" or "MCANALYSIS_TEST_DEVICE" in os.environ:
        return
    for item in items:
        if "accelerator" in item.path.parts:
            item.add_marker(pytest.mark.skip(reason="no accelerator"))


@pytest.fixture
def device():
    return DEVICE


@pytest.fixture(autouse=True)
def whole_float32():
    """TensorFloat-32 keeps 10 bits; what is compared here is to be equal to rounding of float32."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(precision)


@pytest.fixture(scope="module")
def embedded_on():
    """embedded_on(device, dtype="float32") -> the embedded base with an adapter that is the same on every device."""

    def make(device, dtype="float32"):
        base, tokenizer = load_base(dtype=dtype, device=device)
        return LoraModel.attach(base, tokenizer, LoraSettings(rank=8), 0, "embedded")

    return make


@pytest.fixture(scope="module")
def ends(embedded_on):
    """Two adapters far enough from the base to change what it says, on the CPU."""
    start = embedded_on("cpu").point()
    generator = torch.Generator().manual_seed(0)
    return [
        {k: v + 0.05 * torch.randn(v.shape, generator=generator) for k, v in sorted(start.items())} for _ in range(2)
    ]
