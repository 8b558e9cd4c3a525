"""Copying metadata from a checkout of wsolevaluation or Dual-CAM, from any folder of data sets, or from a git URL."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from wsol.datasets.publish import publish_splits
from wsol.datasets.reader import read_ids, read_split
from wsol.datasets.registry import SPLITS
from wsol.errors import InputError

# Our split → its folder in a source, by preference; wsolevaluation formerly called val "train-fullsup".
SOURCE_FOLDERS = {"train": ("train",), "val": ("val", "train-fullsup"), "test": ("test",)}
FILES = ("image_ids.txt", "image_ids_proxy.txt", "class_labels.txt", "image_sizes.txt", "localization.txt", "masks.txt")


def copy_metadata(
    source: str,
    metadata_root: Path,
    names: Sequence[str] = (),
    splits: Sequence[str] = SPLITS,
    *,
    force: bool = False,
    report: Callable[[str], None] = print,
) -> list[str]:
    """Copy data sets' metadata, unchanged. Each split is read as a check before it appears.

    Args:
        source: a folder of data sets, a folder whose metadata/ is one, one data set's own folder, or a git URL.
        metadata_root: where to copy to.
        names: data sets; empty for all.
        splits: the splits to copy.
        force: replace splits that exist already.
        report: called with one line per data set.

    Returns:
        The names of the data sets.

    Raises:
        InputError: the source has no such data set, a file is malformed, or a split exists already with other content.
    """
    if not Path(source).is_dir() and ("://" in source or source.startswith("git@") or source.endswith(".git")):
        with tempfile.TemporaryDirectory(prefix="metadata-") as folder:
            _clone(source, folder)
            return copy_metadata(folder, metadata_root, names, splits, force=force, report=report)
    folders = find_datasets(Path(source))
    if not folders:
        raise InputError(f"no metadata in {source}: it has no [metadata/]<data set>/<split>/image_ids.txt")
    for name in names:
        if name not in folders:
            raise InputError(f"{source} has no data set '{name}' (it has: {', '.join(sorted(folders))})")
    chosen = list(names) or sorted(folders)
    for name in chosen:
        target = metadata_root / name
        added = publish_splits(target, partial(_copy_splits, folders[name], splits=splits), force=force)
        report(
            f"{name}: {', '.join(added)} copied to {target}"
            if added
            else f"{name}: nothing was changed, {target} has the same files"
        )
    return chosen


def find_datasets(source: Path) -> dict[str, Path]:
    """{name: folder} of the data sets in <source>/metadata, else in `source`, else of `source` itself."""
    if not source.is_dir():
        raise InputError(f"{source} is not a folder, and not a git URL either")
    for root in (source / "metadata", source):
        children = sorted(root.iterdir()) if root.is_dir() else []
        folders = {child.name: child for child in children if _splits_in(child)}
        if folders:
            return folders
    return {source.resolve().name: source} if _splits_in(source) else {}


def _splits_in(folder: Path) -> dict[str, Path]:
    """{split: its folder} of a data set's folder."""
    present = {
        split: [folder / name for name in names if (folder / name / "image_ids.txt").is_file()]
        for split, names in SOURCE_FOLDERS.items()
    }
    return {split: paths[0] for split, paths in present.items() if paths}


def _copy_splits(source: Path, new: Path, splits: Sequence[str]) -> None:
    for split, folder in _splits_in(source).items():
        if split in splits:
            (new / split).mkdir()
            for name in FILES:
                if (folder / name).is_file():
                    shutil.copyfile(folder / name, new / split / name)
            read_split(folder.parent, folder.name, new, new, with_localization=split != "train")
            if (folder / "image_ids_proxy.txt").is_file():
                read_ids(folder / "image_ids_proxy.txt")
    if not any(new.iterdir()):
        raise InputError(f"{source} has none of the splits {', '.join(splits)}")
    if (source / "classes.txt").is_file():
        shutil.copyfile(source / "classes.txt", new / "classes.txt")


def _clone(url: str, folder: str) -> None:
    try:
        done = subprocess.run(
            ["git", "clone", "--quiet", "--depth", "1", "--", url, folder],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env=os.environ | {"GIT_TERMINAL_PROMPT": "0"},
            check=False,
        )
    except FileNotFoundError:
        raise InputError("git is not installed; download the repository and name its folder instead") from None
    if done.returncode:
        raise InputError(f"git clone {url} failed: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
