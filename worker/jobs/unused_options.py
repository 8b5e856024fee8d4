"""Options that a job has no use for, as far as its spec alone tells: none is ignored in silence.

They are no part of what a spec can be: a job that was accepted before one was refused can still be read.
"""

from .errors import BadInputError
from .setup_spec import SetupSpec
from .spec import ExportSpec, JobSpec, MergeSpec, VerifySpec
from .spec_fields import LEAST_SHARD_BYTES

_ELECTING = ("ties", "dare_ties")
_DROPPING = ("dare_linear", "dare_ties")


def refuse_unused(spec: JobSpec) -> None:
    """BadInputError for an option that would change nothing, or that lacks what it speaks of."""
    if isinstance(spec, ExportSpec | MergeSpec) and (spec.max_shard_bytes or LEAST_SHARD_BYTES) < LEAST_SHARD_BYTES:
        raise _tiny_shards(spec.max_shard_bytes)
    match spec:
        case VerifySpec():
            _of_verify(spec)
        case MergeSpec():
            _of_merge(spec)
        case SetupSpec():
            _of_setup(spec)
        case _:
            return


def _of_verify(spec: VerifySpec) -> None:
    limits = {"logits_tolerance": spec.logits_tolerance, "least_top1": spec.least_top1}
    for name, value in limits.items():
        if value is not None and not spec.logits:
            raise _unused(name, f"{value}, and no comparison of logits", "it together with logits: true")
    if spec.against is None and spec.logits:
        raise _unused("logits", "true, and no other checkpoint", "two checkpoints: `ferry verify A B --logits`")
    if spec.against is None and spec.hf_config is not None:
        found = f"{spec.hf_config!r}, and no other checkpoint: a manifest needs no config"
        raise _unused("hf_config", found, "it together with `against`")


def _of_merge(spec: MergeSpec) -> None:
    beside = f"and combine {spec.combine}"
    if spec.majority_sign_method != "total" and spec.combine not in _ELECTING:
        raise _unused("majority_sign_method", f"{spec.majority_sign_method!r}, {beside}", _with(_ELECTING))
    if spec.seed and spec.combine not in _DROPPING:
        raise _unused("seed", f"{spec.seed}, {beside}, which draws nothing", _with(_DROPPING))
    if spec.max_shard_bytes is not None and spec.to != "hf":
        raise _unused("max_shard_bytes", f"{spec.max_shard_bytes}, and to: {spec.to}", "it together with to: hf")
    if spec.layer_keys != "stacked" and spec.to != "megatron":
        raise _unused("layer_keys", f"{spec.layer_keys}, and to: {spec.to}", "it together with to: megatron")
    if "logits" in spec.verify and (spec.combine, spec.rounding) != ("sequential", "exact"):
        raise BadInputError(
            "bad_request",
            "spec field verify: logits",
            found=f"combine {spec.combine}, rounding {spec.rounding}",
            expected="adapters that are added, rounded once",
            next_step="Ask for `tensors`, which makes the products of any merge anew.",
        )


def _of_setup(spec: SetupSpec) -> None:
    if spec.init == "random" and spec.base not in ("auto", "import"):
        raise _unused("base", f"{spec.base!r}, and init: random", "auto or import: random weights are written here")
    if spec.hf_config is not None and (spec.init == "random" or spec.base == "import"):
        found = f"{spec.hf_config!r}, and {'init: random' if spec.init == 'random' else 'base: import'}"
        raise _unused("hf_config", found, "it together with a Megatron checkpoint: an HF source has its own config")
    if spec.dtype is not None and spec.base in ("link", "reference"):
        raise _unused("dtype", f"{spec.dtype!r}, and base: {spec.base}, which leaves bytes as they are", "base: import")


def _tiny_shards(found: int | None) -> BadInputError:
    return BadInputError(
        "bad_request",
        "spec field max_shard_bytes",
        found=f"{found}",
        expected=f"a number of at least {LEAST_SHARD_BYTES:,}",
        next_step="Leave `max_shard_bytes` out, or give one that a tensor fits in.",
    )


def _with(methods: tuple[str, ...]) -> str:
    return f"it together with combine {' or '.join(methods)}"


def _unused(name: str, found: str, expected: str) -> BadInputError:
    return BadInputError(
        "bad_request",
        f"spec field {name}",
        found=found,
        expected=expected,
        next_step=f"Leave `{name}` out, or ask for what it belongs to.",
    )
