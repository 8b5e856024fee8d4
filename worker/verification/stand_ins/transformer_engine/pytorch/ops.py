"""Stand-in for the fusible operations: Megatron names these classes; the fused layers made of them are not used."""


class FusibleOperation:
    """One operation of a fused sequence."""


class Sequential:
    """A fused sequence."""
