"""Arguments that are there, or not there, only because a host lacks Transformer Engine, Apex or CUDA."""

INSTEAD = (
    ("--transformer-impl", "local"),
    ("--no-rope-fusion",),
    ("--no-persist-layer-norm",),
    ("--no-masked-softmax-fusion",),
    ("--no-gradient-accumulation-fusion",),
)
"""Arguments that are there for no other reason."""
WITHOUT = frozenset({"--moe-grouped-gemm", "--moe-permute-fusion"})
"""Arguments of the profile that need Transformer Engine, and have no opposite that could be said after them."""
OFF_CUDA = (
    ("--distributed-backend", "gloo"),
    ("--use-cpu-initialization",),
    ("--moe-token-dispatcher-type", "allgather"),
    ("--no-load-rng",),  # there is no state of a device to load
)
"""Besides, on a host without a GPU."""
