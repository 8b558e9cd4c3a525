"""Weights & Biases, if requested: epochs, the results table and figures. It never stops a run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from wsol.cam import Variant
from wsol.evaluation.results import flatten
from wsol.files import write_file
from wsol.log import log


class WandbLogger:
    """A run's reports to W&B. Whatever fails there is logged once and switches W&B off.

    Args:
        enabled: False: every call does nothing.
        project, name: of the W&B run.
        folder: where W&B writes its files.
        config: the run's settings.
        id_file: where the W&B run's id is kept.
        resume: go on in the W&B run of that id.
    """

    def __init__(
        self,
        enabled: bool,
        *,
        project: str | None,
        name: str,
        folder: Path,
        config: dict[str, Any],
        id_file: Path | None = None,
        resume: bool = False,
    ):
        self._run: Any = None
        if enabled:
            self._guard(self._start, project or "dual-cam", name, folder, config, id_file, resume)

    def _start(
        self, project: str, name: str, folder: Path, config: dict[str, Any], id_file: Path | None, resume: bool
    ) -> None:
        import wandb  # here, because it takes seconds to import and most runs do without it

        mode: Any = os.environ.get("WANDB_MODE")
        if mode is None and not _has_credentials():
            mode = "offline"
            log.info(
                "W&B: no credentials, so it logs offline to %s; log in with `wandb login`, and upload this run with "
                "`wandb sync FOLDER`",
                folder / "wandb",
            )
        folder.mkdir(parents=True, exist_ok=True)
        same: dict[str, Any] = {}
        if resume and id_file is not None and id_file.is_file():
            same = {"id": id_file.read_text().strip(), "resume": "allow"}
        self._run = wandb.init(
            project=project,
            name=name,
            dir=str(folder),
            config=config,
            mode=mode,
            settings=wandb.Settings(init_timeout=20, silent=True),
            **same,
        )
        if id_file is not None and not same:
            write_file(id_file, f"{self._run.id}\n")

    def _guard(self, action: Callable[..., object], *arguments: Any, **named: Any) -> None:
        try:
            action(*arguments, **named)
        except Exception as error:  # W&B raises many kinds; none is worth a lost training run
            log.warning("W&B is off for the rest of this run (%s: %s)", type(error).__name__, error)
            self._run = None

    def log_metrics(self, figures: dict[str, Any]) -> None:
        """Report the figures of an epoch."""
        if self._run is not None:
            self._guard(self._run.log, figures)

    def log_results(self, results: dict[str, Any], figures: Iterable[Path]) -> None:
        """Report the results table, each row's metrics in the summary, and the figures."""
        if self._run is not None:
            self._guard(self._log_results, results, figures)

    def _log_results(self, results: dict[str, Any], figures: Iterable[Path]) -> None:
        import wandb

        flat = [flatten(row) for row in results["rows"]]
        columns: list[str | int] = list(dict.fromkeys(key for row in flat for key in row))
        images = {f"figures/{path.stem}": wandb.Image(str(path)) for path in figures if path.suffix == ".png"}
        self._run.log(
            {"results": wandb.Table(columns, [[row.get(str(column)) for column in columns] for row in flat]), **images}
        )
        for row in results["rows"]:
            name = str(Variant.from_record(row))
            self._run.summary.update(
                {f"{name}/{key}": value for key, value in flatten(row).items() if isinstance(value, float)}
            )

    def close(self) -> None:
        """Finish the W&B run."""
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
