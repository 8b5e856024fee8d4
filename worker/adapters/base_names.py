"""Names of base models: when two of them cannot mean the same one."""

import re

_CACHED = re.compile(r"models--([^/]+?)--([^/]+)")
"""A snapshot in huggingface_hub's cache: `models--ORG--NAME/snapshots/HASH`."""

_SIZE = re.compile(r"(\d+x)?\d+(\.\d+)?[bm]")
"""`8b`, `135m`, `8x7b`: from here on a name speaks of one model, and what follows tells its variants apart."""

_SAME_MODEL = frozenset({"hf", "safetensors", "megatron", "mcore", "unsloth", "bnb", "gptq", "awq"}) | frozenset(
    {"4bit", "8bit", "int4", "int8", "fp8", "nf4", "bf16", "fp16", "fp32", "mxfp4"}
)
"""Words that tell copies of one model apart, which an adapter fits alike."""


def is_cached(path: str) -> bool:
    """Whether a path lies in the hub's cache, whose folders are called as the models are."""
    return _CACHED.search(path) is not None


def contradict(said: str, known: str) -> bool:
    """Whether `said` names another model than `known`, a location or a path that a checkpoint was made from.

    A hub's name is a model's name: with `known` from the hub's cache, another one is another model. The name of any
    other folder is somebody's own: it contradicts where one name is the other with words added after the size, as
    `Llama-3.1-8B` and `Llama-3.1-8B-Instruct`. Organizations, and words for a format or a quantization, do not count.
    """
    ours, theirs = _words(said), _words(known)
    if is_cached(known):
        return ours != theirs
    short, long = sorted((ours, theirs), key=len)
    return short != long and long[: len(short)] == short and any(map(_SIZE.fullmatch, short))


def _words(name: str) -> list[str]:
    cached = _CACHED.search(name)
    last = cached[2] if cached else re.split(r"[/:]", name.rstrip("/"))[-1]
    return [word for word in re.split(r"[-_\s]+", last.lower()) if word and word not in _SAME_MODEL]
