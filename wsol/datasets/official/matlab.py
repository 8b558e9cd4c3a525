"""MATLAB files, which SciPy reads; nothing else in this project needs SciPy, so it is imported when used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsol.errors import InputError


def read_variable(path: Path, name: str) -> NDArray:
    """A variable of a MATLAB file as a 1-D array.

    Raises:
        InputError: SciPy is not installed, the file is missing or broken, or it has no such variable.
    """
    try:
        from scipy.io import loadmat
    except ImportError:
        raise InputError(f"{path.name} is a MATLAB file, which SciPy reads: pip install scipy") from None
    try:
        content = loadmat(path, squeeze_me=True)
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except Exception as error:  # on a broken file, SciPy raises whatever its bytes lead to
        raise InputError(f"{path} is not a MATLAB file or is cut off ({type(error).__name__}: {error})") from None
    if name not in content:
        raise InputError(f"{path} has no variable '{name}'")
    return np.atleast_1d(content[name])
