"""Folders that appear complete or not at all.

`publish_dataset` is for generated data sets (images, masks and metadata), `publish_metadata` for metadata alone. Both
let a function write into temporary folders beside the final ones and then rename those.
"""

from __future__ import annotations

import filecmp
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from wsol.datasets.writer import DatasetFolders, DatasetMetadata, write_metadata
from wsol.errors import InputError

# --------------------------------------------------------------------------- whole data sets


def publish_dataset(folders: DatasetFolders, fill: Callable[[DatasetFolders], None]) -> bool:
    """Let `fill` write a data set into temporary folders, then rename them: images, masks, and metadata last.

    Existing metadata therefore means a complete data set. Two processes may do this at the same time: the folders of
    the slower one are discarded. Nothing that exists is deleted or overwritten. If only some of the folders exist (an
    interrupted run, a second metadata root), the missing ones are added, provided that `fill` reproduces the existing
    ones byte for byte.

    Returns:
        True if this call added a folder, False if the data set existed already.

    Raises:
        InputError: a part of a different data set is in the way.
    """
    if all(_has_content(folder) for folder in folders):
        return False
    staged: dict[Path, Path] = {}  # final folder -> temporary folder, in the order of publication
    workshops: list[Path] = []
    try:
        for final in folders:
            if final not in staged:
                workshops.append(_make_workshop(final))
                # mkdtemp's folder is private (0700); the one inside, which gets published, has the usual permissions.
                staged[final] = workshops[-1] / final.name
                staged[final].mkdir()
        fill(DatasetFolders(*(staged[final] for final in folders)))
        return _rename_all(staged)
    finally:
        for workshop in workshops:
            shutil.rmtree(workshop, ignore_errors=True)


def _rename_all(staged: Mapping[Path, Path]) -> bool:
    """Rename every temporary folder to its final name, or accept what exists, by the rules of `publish_dataset`."""
    if all(_has_content(final) for final in staged):
        return False
    for final, temporary in staged.items():  # check all before the first rename: an error leaves no half data set
        if _has_content(final):
            _require_same(final, temporary, staged)
    added = False
    for final, temporary in staged.items():
        try:
            os.rename(temporary, final)  # atomic; refuses a folder that is not empty
            added = True
        except OSError:
            if not _has_content(final):
                raise
            _require_same(final, temporary, staged)
    return added


def _require_same(final: Path, temporary: Path, staged: Mapping[Path, Path]) -> None:
    if _same_content(final, temporary) or all(_has_content(folder) for folder in staged):
        return
    missing = next(folder for folder in staged if not _has_content(folder))
    raise InputError(
        f"{final} has different files than the data set to be written, while {missing} is missing: "
        f"move {final} away, or choose other roots or another name"
    )


# --------------------------------------------------------------------------- metadata


def publish_metadata(folder: Path, metadata: DatasetMetadata, *, force: bool = False) -> list[str]:
    """Write a data set's metadata, all or nothing; see `publish_splits`.

    Raises:
        InputError: also for a record that cannot be written.
    """

    def fill(new: Path) -> None:
        try:
            write_metadata(new, metadata)
        except ValueError as error:
            raise InputError(f"these annotations cannot be written: {error}") from None

    return publish_splits(folder, fill, force=force)


def publish_splits(folder: Path, fill: Callable[[Path], None], *, force: bool = False) -> list[str]:
    """Let `fill(temporary folder)` write splits and classes.txt, then move them into `folder`.

    A new data set appears in one step. Splits are added beside existing ones. If a step fails, everything is put back.

    Args:
        folder: the data set's metadata folder.
        fill: writes <temporary folder>/<split>/*.txt and <temporary folder>/classes.txt.
        force: replace a split or classes.txt that exists with other content, which is an error otherwise.

    Returns:
        The names of what was added or replaced.

    Raises:
        InputError: something is in the way.
    """
    folder = folder.absolute()
    workshop = _make_workshop(folder)
    try:
        new, old = workshop / "new", workshop / "old"
        new.mkdir()
        old.mkdir()
        fill(new)
        names = sorted(path.name for path in new.iterdir())
        if not _has_content(folder):
            os.rename(new, folder)  # atomic; an empty folder may be in its place
            return names
        names = [name for name in names if not _same_content(folder / name, new / name)]
        existing = [name for name in names if (folder / name).exists()]
        if existing and not force:
            raise InputError(
                f"{folder} already has {', '.join(existing)} with other content; nothing was changed: --force "
                "replaces them, --metadata_root or --name write elsewhere"
            )
        _replace(folder, new, old, names)
        return names
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


def _replace(folder: Path, new: Path, old: Path, names: Sequence[str]) -> None:
    """For every name, move folder/name to old/name and new/name to folder/name: all of them or none."""
    moved: list[tuple[Path, Path]] = []
    try:
        for name in names:
            for source, target in ((folder / name, old / name), (new / name, folder / name)):
                if source.exists():
                    os.rename(source, target)
                    moved.append((source, target))
    except BaseException:
        for source, target in reversed(moved):
            os.rename(target, source)
        raise


# --------------------------------------------------------------------------- folders


def _make_workshop(final: Path) -> Path:
    """A new temporary folder beside `final`, so that renaming never crosses file systems."""
    final.parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f".{final.name}-", suffix=".partial", dir=final.parent))


def _has_content(folder: Path) -> bool:
    return folder.is_dir() and next(folder.iterdir(), None) is not None


def _same_content(left: Path, right: Path) -> bool:
    """Whether two files are equal, or two folders have equal files at the same relative paths."""
    if left.is_file() and right.is_file():
        return filecmp.cmp(left, right, shallow=False)
    if not (left.is_dir() and right.is_dir()):
        return False
    names, others = (
        sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()) for folder in (left, right)
    )
    return names == others and all(filecmp.cmp(left / name, right / name, shallow=False) for name in names)
