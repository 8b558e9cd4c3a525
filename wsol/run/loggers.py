"""Where a run's figures go beside its own files: `Loggers` of several kinds, and TensorBoard's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from wsol.cam import Variant
from wsol.errors import InputError
from wsol.evaluation.results import flatten


class Logger(Protocol):
    """Where a run's figures go beside its own files."""

    def log_metrics(self, figures: dict[str, Any]) -> None:
        """Report the figures of an epoch, "<stage>/<split>/<figure>", and its number, "<stage>/epoch"."""
        ...

    def log_results(self, results: dict[str, Any], figures: Iterable[Path]) -> None:
        """Report the content of results.json, and image files."""
        ...

    def close(self) -> None:
        """Finish."""
        ...


class Loggers:
    """Several loggers as one."""

    def __init__(self, loggers: Sequence[Logger]):
        self.loggers = loggers

    def log_metrics(self, figures: dict[str, Any]) -> None:
        """See `Logger`."""
        for logger in self.loggers:
            logger.log_metrics(figures)

    def log_results(self, results: dict[str, Any], figures: Iterable[Path]) -> None:
        """See `Logger`."""
        paths = list(figures)
        for logger in self.loggers:
            logger.log_results(results, paths)

    def close(self) -> None:
        """See `Logger`."""
        for logger in self.loggers:
            logger.close()


class TensorboardLogger:
    """Writes events for `tensorboard --logdir ROOT`.

    Args:
        folder: for the events; a resumed run adds a file to it.

    Raises:
        InputError: the package tensorboard is missing.
    """

    def __init__(self, folder: Path):
        require_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder))

    def log_metrics(self, figures: dict[str, Any]) -> None:
        """See `Logger`."""
        epoch = next(value for key, value in figures.items() if key.endswith("/epoch"))
        for key, value in figures.items():
            if not key.endswith("/epoch"):
                self._writer.add_scalar(key, value, epoch)

    def log_results(self, results: dict[str, Any], figures: Iterable[Path]) -> None:
        """See `Logger`."""
        import numpy as np
        from PIL import Image

        for row in results["rows"]:
            name = str(Variant.from_record(row))
            for key, value in flatten(row).items():
                if isinstance(value, float):
                    self._writer.add_scalar(f"test/{key}/{name}", value)
        for path in figures:
            if path.suffix == ".png":
                with Image.open(path) as image:
                    pixels = np.asarray(image.convert("RGB"))
                self._writer.add_image(f"figures/{path.stem}", pixels, dataformats="HWC")

    def close(self) -> None:
        """See `Logger`."""
        self._writer.close()


def require_tensorboard() -> None:
    """InputError if the package tensorboard is missing."""
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        raise InputError("--tensorboard needs the package tensorboard: pip install tensorboard") from None
