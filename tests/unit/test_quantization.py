"""What a config says of how its tensors are stored."""

import pytest

from tests.quantized_folders import FP8
from worker.mapping.quantization import Quantized, quantized
from worker.mapping.record import Record


@pytest.mark.parametrize("fmt", ["e4m3", "float8_e4m3fn"])
def test_block_fp8_goes_by_either_name(fmt: str) -> None:
    """DeepSeek's, and torch's, which MiniMax-M2 has."""
    config = Record({"quantization_config": FP8 | {"fmt": fmt}}, "config.json")

    assert quantized(config) == Quantized("fp8", (128, 128))
