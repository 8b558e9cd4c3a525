"""`--profile`: what some steps of training spend their time on, as a trace for chrome://tracing or perfetto.dev."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from wsol.files import replacing, write_file
from wsol.log import log

STEPS = 5  # that are recorded, after one that is not
_LINES = 25


@contextmanager
def profiled(folder: Path) -> Iterator[Callable[[], None]]:
    """Record the steps that the block reports with the function that it gets.

    Writes `trace.json`, and `operators.txt` with the operators that took longest, into the folder.
    """
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"

    def save(finished: profile) -> None:
        with replacing(folder / "trace.json") as temporary:
            finished.export_chrome_trace(str(temporary))
        write_file(folder / "operators.txt", finished.key_averages().table(sort_by=by, row_limit=_LINES) + "\n")
        log.info("profile: %s", folder)

    with profile(
        activities=activities, schedule=schedule(wait=0, warmup=1, active=STEPS, repeat=1), on_trace_ready=save
    ) as recorder:
        yield recorder.step
