"""`verify: logits` of a merge: HF's model of the base, its adapters beside it unmerged, against what was written.

It asks the model about all that a merge decides: which layer a factor belongs to, which rows, what sum. Of the merge's
own reading only the scale, as adapter_config.json says it, has a part in it. Where sums are rounded, they are rounded
alike first, as with any comparison of weights in other forms.
"""

from collections.abc import Sequence
from pathlib import Path

from ..adapters.matching import Matched
from ..adapters.peft_config import ADAPTER_CONFIG
from ..adapters.peft_folder import PeftFolder
from ..jobs.errors import BadInputError
from ..jobs.locations import Locations
from ..jobs.spec import MergeSpec
from ..mapping.bindings import Model
from .hf_source import is_hf
from .model_logits import Side, hf_side


def refuse_unverifiable(spec: MergeSpec, source: Path, adapters: Sequence[Matched]) -> None:
    """BadInputError where HF's model cannot have these adapters beside it without PEFT."""
    if "logits" not in spec.verify:
        return
    if not is_hf(source):
        raise _unverifiable("a Megatron base, beside which these adapters do not run", "an HF base")
    for matched in adapters:
        if found := _more_than_factors(matched.folder, len(adapters)):
            raise _unverifiable(
                f"adapter {matched.folder.path} with {found}", "LoRA or one DoRA of linear layers alone"
            )


def _more_than_factors(folder: PeftFolder, count: int) -> str | None:
    if not (folder.path / ADAPTER_CONFIG).exists():
        return "Megatron's layout"
    if folder.replaced:
        return f"a module that is saved whole, {next(iter(folder.replaced))!r}"
    if folder.config.fan_in_fan_out:
        return "fan_in_fan_out"
    if folder.config.use_dora and count > 1:
        return "DoRA beside another one"
    for module in folder.modules:
        if module.embedding or module.nested or module.bias or ".experts" in module.module:
            return f"factors of {module.module!r}, which is no plain linear layer"
    return None


def unmerged_side(spec: MergeSpec, model: Model, locations: Locations) -> Side:
    """The base with its adapters, for `compare_logits`."""
    adapters: list[dict[str, object]] = []
    for use in spec.adapters:
        folder = PeftFolder.open(locations.resolve_source(use.path))
        scales = {one.module: use.weight * folder.config.scale(one.module) for one in folder.modules}
        adapters.append({"folder": str(folder.path), "scales": scales})
    side = hf_side(locations.resolve_source(spec.source), model)
    return {**side, "adapters": adapters, "stored": {"as": "sums in fp32"}}


def _unverifiable(found: str, expected: str) -> BadInputError:
    return BadInputError(
        "bad_request",
        "spec field verify: logits",
        found=found,
        expected=expected,
        next_step="Ask for `tensors`, which makes the products of any merge anew.",
    )
