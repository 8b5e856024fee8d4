"""A stand-in for Transformer Engine on a CPU: its modules' parameters, states and mathematics, none of its kernels.

It lets Megatron-Core build, name and run the layers that trainers use. Parameter names, the modules that keep an
`_extra_state`, and its empty value are those of Transformer Engine 2.x's own modules.
"""

from . import common, pytorch

__all__ = ["common", "pytorch"]
__version__ = "2.8.0"
