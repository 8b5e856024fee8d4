"""numpy's matrix products kept to one thread: copy processes are as many as there are cores to use."""

import ctypes
from functools import cache
from pathlib import Path

import numpy as np

_SETTERS = ("scipy_openblas_set_num_threads64_", "openblas_set_num_threads64_", "openblas_set_num_threads")


@cache
def one_thread() -> None:
    """Of the OpenBLAS that numpy's wheels bring (measured: 56 GFLOPS with one thread, 10 with two on a busy host).

    Another library's products are as right, and its threads its own business.
    """
    for path in (Path(np.__file__).parents[1] / "numpy.libs").glob("*openblas*"):
        library = ctypes.CDLL(str(path))
        for name in _SETTERS:
            if hasattr(library, name):
                getattr(library, name)(1)
