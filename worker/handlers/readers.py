"""The formats' own libraries set on a source or an output, for whoever verifies."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoints.iterations import iteration_folder
from ..mapping.blocks import Plan
from ..mapping.quantization import quantized
from .config import read_record
from .quantize import BLOCK

if TYPE_CHECKING:
    from ..verification.readers import SafetensorsReader
    from ..verification.tensors import RenderedReader


def hf_reader(source: Path) -> "SafetensorsReader":
    """An HF folder, quantized or not."""
    from ..verification.readers import SafetensorsReader

    way = quantized(read_record(source))
    return SafetensorsReader(source, way.block if way else (BLOCK, BLOCK))


def megatron_reader(source: Path, plan: Plan) -> "RenderedReader":
    """A Megatron checkpoint under HF's names, by the plan of its export."""
    from ..verification.readers import TorchDistReader
    from ..verification.tensors import RenderedReader

    return RenderedReader(source=TorchDistReader(iteration_folder(source)), tasks=plan.tasks)
