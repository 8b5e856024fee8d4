"""Stand-in for quantized tensors, of which there are none."""


class QuantizedTensor:
    """The class that no tensor here is of."""
