"""The printed tables: results, fidelity, cost, and thresholds."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from tabulate import tabulate

from wsol.cam import Variant
from wsol.metrics.box_metrics import HEADLINE_TITLES

# results.json key → heading, in the order of the table.
_COLUMNS = {
    "maxboxacc_v2": "MaxBoxAccV2",
    "gt_loc": "GT-Loc",
    "gt_loc_val": "GT-Loc@val",
    "top1_loc": "Top-1 Loc",
    "pxap": "PxAP",
}
_COMPARED = ("maxboxacc_v2", "pxap")  # with the method's baseline
_BEST_ON_TEST = "†"  # behind the heading of a column
# figure of row["fidelity"] → heading and format: percent, or areas and differences of confidence.
_FIDELITY = {
    "avg_drop": ("drop ↓", ".1f"),
    "inc_conf": ("increase ↑", ".1f"),
    "avg_gain": ("gain ↑", ".1f"),
    "insertion": ("insertion ↑", ".3f"),
    "deletion": ("deletion ↓", ".3f"),
    "road": ("ROAD ↑", ".3f"),
    "pointing": ("pointing ↑", ".1f"),
    "energy_pointing": ("energy ↑", ".1f"),
}
_CENTER = "centre Gaussian"


def summary(results: dict[str, Any]) -> str:
    """All that is printed after an evaluation: accuracy, tables, and seconds."""
    intervals = results.get("intervals", {}).get("classification", {})
    accuracy = f"softmax head: {_accuracy(results['classification'], intervals)}"
    if branch := results.get("sigmoid_classification"):
        accuracy += f"; sigmoid branch: {_accuracy(branch)}"
    parts = [
        f"{results['dataset']} {results['split']}, {results['num_images']:,} images; {accuracy}",
        results_table(results),
        "\n".join(_footer(results)),
    ]
    if unchanged := _unchanged_by_clamping(results):
        parts.append(
            f"{', '.join(unchanged)}: the rows sigmoid and sigmoid, clamped are equal, because the branch has no "
            "negative weights"
        )
    if any("fidelity" in row for row in results["rows"]):
        parts.append(fidelity_table(results))
    if "cost" in results:
        parts.append(cost_table(results))
    parts.append(", ".join(f"{key} {value:.0f} s" for key, value in results["seconds"].items()))
    return "\n\n".join(parts)


def _accuracy(figures: Mapping[str, float], intervals: Mapping[str, list[float]] | None = None) -> str:
    """ "Top-1 96.7 % [93.6–98.3], Top-5 ...", with those intervals that are known."""
    known = intervals or {}
    return ", ".join(
        f"{key.replace('top', 'Top-')} {value:.1f} %" + (f" [{_range(known[key])}]" if key in known else "")
        for key, value in figures.items()
    )


def _footer(results: dict[str, Any]) -> list[str]:
    """What the columns of the table are: which thresholds they are read at, and what the intervals say."""
    rows, lines = results["rows"], []
    if any("maxboxacc_v2" in row for row in rows):
        lines.append(f"{_BEST_ON_TEST}: at the threshold that is best on these images, as the benchmark defines it")
        fixed = next(row["tau"]["gt_loc"] for row in rows if "maxboxacc_v2" in row)
        lines.append(f"GT-Loc, Top-1 Loc: at the threshold {fixed:g}, the same for every row")
    if any("gt_loc_val" in row for row in rows):
        lines.append("GT-Loc@val: at the threshold that is best on the val split; figures draw these boxes")
    lines.append(
        f"{_CENTER}: one centred disc for all images, a baseline without a model; at a fixed threshold its size, and "
        "so its GT-Loc, is arbitrary"
    )
    if "intervals" in results:
        lines.append("95 %: interval over images, the network held fixed")
    return lines


def _unchanged_by_clamping(results: dict[str, Any]) -> list[str]:
    """The methods whose plain and clamped sigmoid rows have the same numbers, in a run with nonnegative weights."""
    setting, rows = results.get("branch", {}).get("setting", {}), results["rows"]
    if setting.get("weights") != "nonnegative":
        return []
    plain = (row for row in rows if row["head"] == "sigmoid" and not row["clamped"])
    return list(dict.fromkeys(row["method"] for row in plain if row | {"clamped": True} in rows))


def results_table(results: dict[str, Any]) -> str:
    """One line per variant and one for the centre baseline.

    "Δ" is the difference from the method's baseline, its softmax row without refinement. "95 %" is the interval over
    images, for rows that have an `interval`. Columns of a threshold that is best on test are marked.
    """
    rows = results["rows"]
    titles = dict(_COLUMNS)
    judged_by = results.get("localization", "maxboxacc_v2")
    if judged_by not in _COLUMNS:  # a figure of its own, as --multi_* and --box_v2_metric chose
        titles = {"localization": HEADLINE_TITLES[judged_by]} | titles
    shown = [key for key in titles if any(key in row for row in rows)]
    iou_keys = list(rows[0].get("maxboxacc", {})) if rows else []
    with_interval = [key for key in _COMPARED if any(key in row.get("interval", {}) for row in rows)]
    headings = ["method", "head"]
    for key in shown:
        best_on_test = key in ("localization", "maxboxacc_v2")
        headings.append(titles[key] + _BEST_ON_TEST * best_on_test)
        headings += ["95 %"] * (key in with_interval) + ["Δ"] * (key in _COMPARED)
        headings += [f"@{iou}{_BEST_ON_TEST}" for iou in iou_keys] if key == "maxboxacc_v2" else []
    by_variant = {Variant.from_record(row): row for row in rows}
    lines: list[list[str]] = []
    previous = None
    for row in rows:
        variant = Variant.from_record(row)
        if previous not in (None, variant.method):
            lines.append([""] * len(headings))
        method = "" if variant.method == previous else variant.method
        baseline = by_variant.get(variant.baseline)
        lines.append([method, variant.head_label, *_cells(row, baseline, shown, iou_keys, with_interval)])
        previous = variant.method
    lines.append([""] * len(headings))
    lines.append([_CENTER, "", *_cells(results["center"], None, shown, iou_keys, with_interval)])
    return _tabulate(lines, headings, left=2)


def _cells(
    row: dict[str, Any],
    baseline: dict[str, Any] | None,
    shown: Iterable[str],
    iou_keys: Collection[Any],
    with_interval: Collection[str],
) -> list[str]:
    cells = []
    for key in shown:
        cells.append(f"{row[key]:.1f}" if key in row else "")
        if key in with_interval:
            cells.append(_range(row.get("interval", {}).get(key)))
        if key in _COMPARED:
            comparable = baseline is not None and baseline is not row and key in row and key in baseline
            cells.append(f"{row[key] - baseline[key]:+.1f}" if comparable and baseline is not None else "")
        if key == "maxboxacc_v2":
            cells += [f"{row['maxboxacc'][iou]:.1f}" if "maxboxacc" in row else "" for iou in iou_keys]
    return cells


def _range(interval: Sequence[float] | None) -> str:
    return f"{interval[0]:.1f}–{interval[1]:.1f}" if interval is not None else ""


def branch_table(branch: dict[str, Any]) -> str:
    """One line per candidate of `--branch_choice val`; branch: that block of results.json."""
    lines = [
        [
            candidate["setting"]["weights"],
            f"{float(candidate['setting']['lambda']):g}",
            f"{candidate['setting'].get('mu', 0):g}",
            *_figure_and_choice(branch, candidate),
        ]
        for candidate in branch["candidates"]
    ]
    return _tabulate(lines, ["branch weights", "lambda", "mu", _criterion_on_val(branch), ""], left=1)


def affinity_table(affinity: dict[str, Any]) -> str:
    """One line per candidate of `--affinity_choice val`; affinity: that block of results.json."""
    lines = []
    for candidate in affinity["candidates"]:
        setting = candidate["setting"] or {}
        cells = [str(setting.get(key, "")) for key in ("layer", "power", "steps", "centred")]
        lines.append([cells[0] or "no refinement", *cells[1:], *_figure_and_choice(affinity, candidate)])
    return _tabulate(lines, ["affinity layer", "power", "steps", "centred", _criterion_on_val(affinity), ""], left=1)


def _criterion_on_val(choice: dict[str, Any]) -> str:
    return HEADLINE_TITLES[choice["criterion"]] + " on val"


def _figure_and_choice(choice: dict[str, Any], candidate: dict[str, Any]) -> list[str]:
    """A candidate's figure on val, and whether it was chosen."""
    chosen = "chosen" if candidate["setting"] == choice["setting"] else ""
    return [f"{candidate['val'][choice['criterion']]:.1f}", chosen]


def fidelity_table(results: dict[str, Any]) -> str:
    """One line per variant and head whose confidence is read; arrows point to where better is."""
    lines: list[tuple[str, str, str, dict[str, float]]] = []
    previous = None
    for row in results["rows"]:
        variant = Variant.from_record(row)
        by_head = {head: figures for head, figures in row["fidelity"].items() if isinstance(figures, dict)} or {"": {}}
        pointing = {key: value for key, value in row["fidelity"].items() if key not in by_head}
        names = ("" if variant.method == previous else variant.method, variant.head_label)
        for head, figures in by_head.items():
            lines.append((*names, head, figures | pointing))
            names, pointing = ("", ""), {}  # only on the variant's first line
        previous = variant.method
    shown = [key for key in _FIDELITY if any(key in figures for *_, figures in lines)]
    cells = [
        [*names, *(format(figures[key], _FIDELITY[key][1]) if key in figures else "" for key in shown)]
        for *names, figures in lines
    ]
    headings = ["method", "head", "confidence of", *(_FIDELITY[key][0] for key in shown)]
    return _tabulate(cells, headings, left=3)


def cost_table(results: dict[str, Any]) -> str:
    """What the forward pass, each method with all its heads, and the refinement of all maps cost.

    What methods share counts for the first.
    """
    forward = results["cost"]["forward"]["seconds"]
    lines = [
        [name, f"{cost['seconds']:.2f}", f"{cost['seconds'] / forward:.2f}", f"{cost['mib']:.0f}"]
        for name, cost in results["cost"].items()
    ]
    return _tabulate(lines, ["maps of", "seconds", "in forward passes", "extra MiB"], left=1)


def threshold_table(results: dict[str, Any]) -> str:
    """One line per variant: every localization metric with the threshold that it was read at."""
    rows = [(Variant.from_record(row).label, row) for row in results["rows"]] + [(_CENTER, results["center"])]
    headings = {
        "maxboxacc_v2": "MaxBoxAccV2" + _BEST_ON_TEST,
        "maxboxacc_v1": "MaxBoxAcc" + _BEST_ON_TEST,
        "gt_loc": "GT-Loc",
        "gt_loc_val": "GT-Loc@val",
        "pxap": "PxAP",
    }
    shown = [key for key in headings if any(key in row for _, row in rows)]
    deltas = list(rows[0][1].get("maxboxacc", {}))
    lines = []
    for label, row in rows:
        taus = row.get("tau", {})
        cells = {
            key: f"{row[key]:.2f}" + (f" [{taus[key]:g}]" if isinstance(taus.get(key), float) else "")
            for key in shown
            if key in row
        }
        per_delta = [f"{row['maxboxacc'][d]:.2f} [{taus['maxboxacc'][d]:g}]" if taus else "" for d in deltas]
        lines.append([label, *per_delta, *(cells.get(key, "") for key in shown)])
    return _tabulate(
        lines, ["maps", *(f"@{delta}{_BEST_ON_TEST}" for delta in deltas), *(headings[key] for key in shown)], left=1
    )


def _tabulate(lines: Sequence[Sequence[str]], headings: Sequence[str], left: int) -> str:
    """A table of strings whose first `left` columns are aligned to the left."""
    return tabulate(
        lines, headings, disable_numparse=True, colalign=["left"] * left + ["right"] * (len(headings) - left)
    )
