"""The OpenBLAS that NumPy's wheels carry: its threads, and which kernels it chose for this CPU."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache
from glob import glob
from typing import Any, NamedTuple

import numpy as np


class Blas(NamedTuple):
    """What can be asked of a loaded OpenBLAS.

    Attributes:
        get_num_threads, set_num_threads: of its own threads.
        core: the kind of CPU whose kernels it runs, such as "Haswell"; "" if it doesn't tell.
    """

    get_num_threads: Callable[[], int]
    set_num_threads: Callable[[int], None]
    core: str

    @property
    def has_avx512(self) -> bool:
        """Whether its kernels compute on 512 bits at once."""
        return self.core.lower() in ("skylakex", "cooperlake", "sapphirerapids")


@cache
def numpy_blas() -> Blas | None:
    """Return NumPy's OpenBLAS; None where NumPy was built with another BLAS, or found one."""
    package = os.path.dirname(np.__file__)
    for folder in (package + ".libs", os.path.join(package, ".dylibs")):
        for path in sorted(glob(os.path.join(folder, "*openblas*"))):
            try:
                library = ctypes.PyDLL(path)  # already loaded by NumPy
            except OSError:
                continue
            for prefix in ("scipy_openblas", "openblas"):
                for suffix in ("64_", ""):
                    found = _functions(library, prefix, suffix)
                    if found is not None:
                        return found
    return None


def _functions(library: Any, prefix: str, suffix: str) -> Blas | None:
    get = getattr(library, f"{prefix}_get_num_threads{suffix}", None)
    set_ = getattr(library, f"{prefix}_set_num_threads{suffix}", None)
    if get is None or set_ is None:
        return None
    get.restype, set_.restype = ctypes.c_int, None
    set_.argtypes = [ctypes.c_int]
    core = getattr(library, f"{prefix}_get_corename{suffix}", None)
    if core is None:
        return Blas(get, set_, "")
    core.restype = ctypes.c_char_p
    return Blas(get, set_, (core() or b"").decode("ascii", "replace"))
