"""The vocabulary: written as it is, unpadded; Megatron's builder pads it to the tensor-parallel size."""

from dataclasses import dataclass, field

from .record import Record


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """`make_vocab_size_divisible_by` is the largest power of two up to 128 that divides the vocabulary."""

    hf: tuple[str, ...] = field(default=("vocab_size",), init=False)
    mcore: tuple[str, ...] = field(
        default=("vocab_size", "should_pad_vocab", "make_vocab_size_divisible_by"), init=False
    )

    def to_mcore(self, config: Record) -> dict[str, object]:
        size = config.positive("vocab_size")
        return {
            "vocab_size": size,
            "should_pad_vocab": True,
            "make_vocab_size_divisible_by": min(128, size & -size),
        }

    def to_hf(self, values: Record) -> dict[str, object]:
        return {"vocab_size": values.positive("vocab_size")}


def padded_size(values: Record, tp_size: int) -> int:
    """The vocabulary that Megatron's builder makes for `tp_size` (`vocab_size_with_padding`)."""
    multiple = values.positive("make_vocab_size_divisible_by") * tp_size
    return -(-values.positive("vocab_size") // multiple) * multiple
