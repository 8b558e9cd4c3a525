"""How the metrics' loops are compiled: cached on disk, and without the interpreter's lock, so that threads help.

Importing this module imports numba, which takes half a second, and the first call of a compiled function compiles it,
which takes seconds. So only functions that measure import modules with such loops.
"""

from collections.abc import Callable
from typing import Any

from numba import njit

Function = Callable[..., Any]


def cached(function: Function) -> Function:
    """Compile `function`, and keep the machine code on disk where a folder is writable.

    That is __pycache__ beside the function's file, or else numba's folder in the user's cache; NUMBA_CACHE_DIR names
    another one. numba replaces files as a whole, and a function that is always called with the same types has one
    version, so processes that compile at the same time write the same.
    """
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # numba found no writable folder
        return njit(nogil=True)(function)


def inlined(function: Function) -> Function:
    """Compile `function` into each of its callers."""
    return njit(nogil=True, forceinline=True)(function)
