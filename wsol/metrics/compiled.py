"""How the metrics' loops are compiled: once, kept on disk, and free of the interpreter's lock, so that threads pay.

Whoever imports this imports numba, which takes half a second, and the first call of a function compiles it, which takes
seconds. So only functions that measure import such modules.
"""

from numba import njit


def kept(function):
    """`function` compiled; the machine code is kept on disk where there is a folder to write to.

    That is __pycache__ beside the function's file, or else numba's folder in the user's cache; NUMBA_CACHE_DIR names
    another one. Files are replaced as a whole, and a function that is always called with the same types has one, so
    processes that compile at the same time write the same.
    """
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # numba found no folder that it may write to
        return njit(nogil=True)(function)


inlined = njit(nogil=True, forceinline=True)
