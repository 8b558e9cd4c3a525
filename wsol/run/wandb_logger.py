"""Weights & Biases, if it was asked for."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from wsol.cam import Variant
from wsol.log import log
from wsol.run.folder import RunFolder
from wsol.run.report import flatten


class Wandb:
    """Weights & Biases, if it was asked for. Whatever goes wrong there is logged once and never stops the run."""

    def __init__(
        self, wanted: bool, *, project: str | None, name: str, folder: str | None, run: RunFolder, config: dict
    ):
        self._run = None
        if wanted:
            self._guard(self._start, project or "dual-cam", name, Path(folder) if folder else run.path, config)

    def _start(self, project: str, name: str, folder: Path, config: dict) -> None:
        import wandb  # here: it takes seconds to import, and most runs do without it

        mode = os.environ.get("WANDB_MODE")
        if mode is None and not _has_credentials():
            mode = "offline"
            log.info(
                "W&B: no credentials, logging offline to %s; `wandb login` sends later runs, "
                "`wandb sync FOLDER` this one",
                folder / "wandb",
            )
        folder.mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(init_timeout=20, silent=True)
        self._run = wandb.init(project=project, name=name, dir=str(folder), config=config, mode=mode, settings=settings)

    def _guard(self, action, *arguments, **named) -> None:
        try:
            action(*arguments, **named)
        except Exception as error:  # W&B raises many kinds; none is worth a lost training run
            log.warning("W&B is off for the rest of this run (%s: %s)", type(error).__name__, error)
            self._run = None

    def log_metrics(self, figures: dict[str, Any]) -> None:
        """Figures of an epoch."""
        if self._run is not None:
            self._guard(self._run.log, figures)

    def log_results(self, results: dict[str, Any], figures: Iterable[Path]) -> None:
        """The results table, each row's metrics in the summary, and the pictures."""
        if self._run is not None:
            self._guard(self._log_results, results, figures)

    def _log_results(self, results: dict[str, Any], figures: Iterable[Path]) -> None:
        import wandb

        flat = [flatten(row) for row in results["rows"]]
        columns = list(dict.fromkeys(key for row in flat for key in row))
        self._run.log(
            {
                "results": wandb.Table(columns, [[row.get(c) for c in columns] for row in flat]),
                **{f"figures/{path.stem}": wandb.Image(str(path)) for path in figures},
            }
        )
        for row in results["rows"]:
            self._run.summary.update(
                {
                    f"{str(Variant.from_record(row))}/{key}": value
                    for key, value in flatten(row).items()
                    if isinstance(value, float)
                }
            )

    def close(self) -> None:
        if self._run is not None:
            self._guard(self._run.finish)


def _has_credentials() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    import netrc

    try:
        return any("wandb" in host for host in netrc.netrc().hosts)
    except (OSError, netrc.NetrcParseError):
        return False
