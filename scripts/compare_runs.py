#!/usr/bin/env python
"""Compare finished runs: mean ± standard deviation over seeds, and paired differences over the same images.

    python scripts/compare_runs.py experiments/cam experiments/hires            # A, B; more follow as C, D, ...
    python scripts/compare_runs.py cam-0,cam-1,cam-2 hires-0,hires-1,hires-2    # groups of seeds, joined by commas
    python scripts/compare_runs.py 'experiments/cam-*' 'experiments/hires-*'    # groups by quoted patterns
    python scripts/compare_runs.py experiments/cam --metrics maxboxacc_v2,pxap  # one run: its rows against softmax

Each argument is a run folder of main.py; all must be evaluated on the same split. wsol/evaluation/comparison.py says
how the table is made.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from wsol.evaluation.comparison import read_groups, table
from wsol.run import command
from wsol.run.flag_types import names, random_seed, resamples


def report(arguments: argparse.Namespace) -> str:
    """The groups, the table and what its signs mean."""
    groups, images = read_groups(arguments.runs, arguments.bootstrap, arguments.seed)
    lines = [f"{group.name}: {', '.join(map(str, group.folders))}" for group in groups]
    legend = []
    if any(len(group.folders) > 1 for group in groups):
        legend.append("±: standard deviation over the runs of a group")
    if arguments.bootstrap:
        legend.append(
            f"[low, high]: 95 % bootstrap interval of the difference over the same images "
            f"({arguments.bootstrap:,} resamples, trained networks held fixed); *: interval excludes 0"
        )
    return "\n".join([*lines, images, "", table(groups, arguments.rows, arguments.metrics), "", *legend])


def main(argv: list[str] | None = None) -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN[,RUN...]",
        help="a run folder, a group of seeds joined by commas, or a quoted pattern",
    )
    parser.add_argument(
        "--rows",
        type=names,
        default=[],
        metavar="A,B,...",
        help="show only these rows, such as cam_sigmoid_clamped or classification",
    )
    parser.add_argument(
        "--metrics", type=names, default=[], metavar="A,B,...", help="show only these metrics, such as maxboxacc_v2"
    )
    parser.add_argument(
        "--bootstrap",
        type=resamples,
        default=1000,
        metavar="N",
        help="number of resamples (default 1000); 0: no intervals",
    )
    parser.add_argument(
        "--seed", type=random_seed, default=0, metavar="N", help="random seed of the resamples (default 0)"
    )
    print(report(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(command.run(main))
