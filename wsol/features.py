"""What a frozen trunk makes of images, computed once: in memory, or in files that later runs find again.

`Features` are the head's inputs of a training split, perhaps in several augmented views of each image.
`KeptActivations` are the maps that a val split's CAM is made of, so that each epoch measures val without the trunk.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import filelock
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from wsol import distributed
from wsol.cam.regions import Regions
from wsol.cam.registry import get_method
from wsol.checksum import checksum
from wsol.classifier import Classifier, eval_mode
from wsol.device import to_device
from wsol.errors import InputError
from wsol.files import NOT_ARRAYS, SPARE, free_bytes, in_words
from wsol.log import log, progress
from wsol.precision import Precision
from wsol.workers import EpochIndex, parallel_loader

RAM_BYTES = 2 * 1024**3  # what `auto` keeps in memory
_VIEWS = 0x76696577  # the stage that the random draws of views belong to


@dataclass(frozen=True)
class FeatureCache:
    """How features are kept.

    Args:
        mode: "ram"; "disk": in files below `folder`, which are read as they are needed and found again by later runs of
            the same network, weights, images and settings; "auto": in memory up to RAM_BYTES, otherwise on disk if it
            has room; "off".
        folder: for the files.
        views: augmented views of each image; 0: augmented images are not cached. Images as they are have one.
        half: kept as float16, in half the space.
    """

    mode: str = "auto"
    folder: Path = field(default_factory=lambda: Path("experiments/feature_cache"))
    views: int = 0
    half: bool = False


class Features(Dataset):
    """Head inputs: items and batches are (*parts, label, index), parts of the view whose turn it is.

    Args:
        parts: arrays (V, N, ...): of V views, epoch e sees view (e - 1) mod V.
        labels: (N,) int64.
        shard: the indices of these images in the data set; None: all of it. Of several processes each has its own.
    """

    def __init__(self, parts: Sequence[NDArray], labels: NDArray[np.int64], shard: range | None = None):
        self.parts, self.labels = list(parts), labels
        self.shard = range(len(labels)) if shard is None else shard

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return tuple(values[0] for values in self.__getitems__([index]))

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        """A whole batch at once, perhaps of no image; the indices of an epoch all carry its number."""
        rows = np.asarray([self.shard.index(int(index)) for index in indices], np.int64)
        epoch = indices[0].moment[1] if len(indices) and isinstance(indices[0], EpochIndex) else 1
        of_view = [part[(epoch - 1) % len(part)] for part in self.parts]
        return (
            *(torch.from_numpy(np.asarray(part[rows], np.float32)) for part in of_view),
            torch.from_numpy(self.labels[rows]),
            torch.tensor([int(index) for index in indices], dtype=torch.long),
        )

    def loader(self, batch_size: int, sampler: Any = None) -> DataLoader:
        """A loader of whole batches, in this process; of several processes each has its own images of every batch."""
        if distributed.world_size() > 1:
            batches = distributed.BatchShares(sampler, batch_size, own=True)
            return parallel_loader(self, 1, 0, batch_sampler=batches, collate_fn=_as_it_is)
        return parallel_loader(self, batch_size, 0, sampler=sampler, collate_fn=_as_it_is)


def _as_it_is(batch: Any) -> Any:
    return batch


class _InOrder(Sampler[EpochIndex]):
    """Indices in order, of one moment."""

    def __init__(self, indices: range, moment: tuple[int, int]):
        self.indices, self.moment = indices, moment

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[EpochIndex]:
        return (EpochIndex(index, self.moment) for index in self.indices)


# --------------------------------------------------------------------------- computing them


@torch.no_grad()
def cache_features(
    model: Classifier,
    loader: DataLoader,
    device: torch.device,
    regions: Regions | None = None,
    cache: FeatureCache | None = None,
    precision: Precision | None = None,
) -> Features | None:
    """The head's input for every image of a loader's data set, in order.

    None if the logits are not simply the head's output (a layer follows the head), or if the mode or the space do not
    allow it; a line in the log says so. Otherwise it says what they take before they are computed. Of several processes
    each has the features of its shard of the images.

    Args:
        regions: the mean features of object and background are kept, too: parts (features, pooled).
        cache: how they are kept.
        precision: of the forward pass.

    Raises:
        InputError: mode "ram" or "disk", and there is not enough of it; or there are more processes than images.
    """
    cache = cache or FeatureCache()
    dataset: Any = loader.dataset
    shard = distributed.shard(len(dataset))
    batches_of: Any = loader.batch_sampler
    batch_size = distributed.share_of(batches_of.batch_size)
    if not shard:
        raise InputError(f"{len(dataset)} training images are too few for {distributed.world_size()} processes")
    views = 1 if getattr(dataset, "augment", "none") == "none" else cache.views
    if cache.mode == "off" or not views:
        return None
    key, has_name = None, hasattr(dataset, "identity")
    if cache.mode == "disk" and has_name:
        key = _key(model, dataset, regions, views, cache, precision)
        if (found := _find(cache.folder, key, shard)) is not None:
            return found
    autocast = precision.autocast if precision is not None else nullcontext

    def batches() -> Iterator[tuple[tuple[Tensor, ...], Tensor, Tensor]]:
        for view in range(views):
            in_order = parallel_loader(
                dataset, batch_size, loader.num_workers, sampler=_InOrder(shard, (_VIEWS, view + 1))
            )
            title = "features" if views == 1 else f"features, view {view + 1} of {views}"
            for images, labels, _ in progress(in_order, title):
                images = to_device(images, device)
                with autocast():
                    parts = (model.head_input(images),) if regions is None else regions(images, labels.to(device))
                yield parts, labels, images

    with eval_mode(model):
        computed = batches()
        parts, labels, images = next(computed)
        with autocast():
            if not ends_with_head(model, images, parts[0]):
                return None
        shapes = [(views, len(shard), *part.shape[1:]) for part in parts]
        dtype = np.dtype(np.float16 if cache.half else np.float32)
        size = sum(int(np.prod(shape)) for shape in shapes) * dtype.itemsize
        # A name takes a look at every image and weight, which what stays in memory can do without.
        if cache.mode == "auto" and size > RAM_BYTES and has_name:
            key = _key(model, dataset, regions, views, cache, precision)
            if (found := _find(cache.folder, key, shard)) is not None:
                return found
        store = _choose_store(cache, key, shapes, dtype, size)
        if store is None:
            return None
        with store:
            kept = [labels]
            start = time.perf_counter()
            store.add(parts)
            for number, (parts, labels, _) in enumerate(computed):
                store.add(parts)
                kept.append(labels)
                if number == 0:
                    seconds = (time.perf_counter() - start) / len(labels) * views * len(shard)
                    log.info("features of %s images: about %s", f"{views * len(dataset):,}", _duration(seconds))
            return store.finish(torch.cat(kept)[: len(shard)].numpy(), shard)


def ends_with_head(model: Classifier, images: Tensor, head_input: Tensor) -> bool:
    """Whether the logits are the head's output as it is."""
    return torch.equal(model.classify(head_input).logits, model(images).logits)


def _key(
    model: Classifier,
    dataset: Any,
    regions: Regions | None,
    views: int,
    cache: FeatureCache,
    precision: Precision | None,
) -> str:
    """A name that is the same only for the same features: network, weights, images, views and precision."""
    # Regions' maps are those of the softmax head; without them it does not matter.
    tensors = model.trunk_state_dict() if regions is None else model.network.state_dict()
    what = {
        "network": repr(model.network),
        "weights": tensors,
        "data": dataset.identity(),
        "settings": [views, cache.half, regions is not None, precision.amp if precision is not None else "off"],
    }
    if distributed.world_size() > 1:
        what["shard"] = [distributed.rank(), distributed.world_size()]
    return checksum(what).split()[-1][:32]


def _choose_store(
    cache: FeatureCache, key: str | None, shapes: list[tuple[int, ...]], dtype: np.dtype, size: int
) -> _InMemory | _OnDisk | None:
    """Where features of `size` bytes go; None if nowhere. Says so in the log."""
    mode, amount = cache.mode, in_words(size)
    if mode == "auto":
        mode = "ram" if size <= RAM_BYTES else "disk"
        if mode == "disk" and (key is None or free_bytes(cache.folder) < size * SPARE):
            log.info("features are not cached: they take %s, for which %s has no room", amount, cache.folder)
            return None
    if mode == "ram":
        available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if size > RAM_BYTES and size * SPARE > available:
            raise InputError(
                f"--feature_cache ram: the features take {amount}, and {in_words(available)} of memory are free; give "
                "disk"
            )
        log.info("features: %s, in memory", amount)
        return _InMemory(shapes, dtype)
    if key is None:
        raise InputError("--feature_cache disk: these images have no name to find their features again by")
    if free_bytes(cache.folder) < size * SPARE:
        raise InputError(
            f"--feature_cache disk: the features take {amount}, and {cache.folder} has "
            f"{in_words(free_bytes(cache.folder))}; make room, or give --feature_cache off or --feature_half"
        )
    log.info("features: %s, in %s", amount, cache.folder / key)
    return _OnDisk(cache.folder, key, shapes, dtype)


class _InMemory:
    """Features in arrays."""

    def __init__(self, shapes: list[tuple[int, ...]], dtype: np.dtype):
        self.parts = [np.empty(shape, dtype) for shape in shapes]
        self._done = 0

    def __enter__(self) -> _InMemory:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def add(self, parts: Sequence[Tensor]) -> None:
        """Append a batch; views follow one another."""
        count = len(parts[0])
        for kept, part in zip(self.parts, parts, strict=True):
            kept.reshape(-1, *kept.shape[2:])[self._done : self._done + count] = part.float().cpu().numpy()
        self._done += count

    def finish(self, labels: NDArray[np.int64], shard: range) -> Features:
        """All of them."""
        return Features(self.parts, labels, shard)


class _OnDisk:
    """Features in `.npy` files of a folder, which has its name only when it is whole.

    Written one after the other, not through memory maps: on a full disk a memory map ends the process.
    """

    def __init__(self, folder: Path, key: str, shapes: list[tuple[int, ...]], dtype: np.dtype):
        self.folder, self.key, self.shapes, self.dtype = folder, key, shapes, dtype
        self.temporary = folder / f".{key}.tmp"
        self._lock = filelock.FileLock(folder / f"{key}.lock")
        self._files: list[BinaryIO] = []

    def __enter__(self) -> _OnDisk:
        with _naming_the_disk(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()  # another run may be computing the same ones
            shutil.rmtree(self.temporary, ignore_errors=True)
            self.temporary.mkdir()
            for number, shape in enumerate(self.shapes):
                file = open(self.temporary / f"part{number}.npy", "wb")  # closed in __exit__
                self._files.append(file)
                header = {"descr": self.dtype.str, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()
        shutil.rmtree(self.temporary, ignore_errors=True)
        self._lock.release()

    def add(self, parts: Sequence[Tensor]) -> None:
        """Append a batch; views follow one another."""
        with _naming_the_disk(self.folder):
            for file, part in zip(self._files, parts, strict=True):
                file.write(part.float().cpu().numpy().astype(self.dtype).tobytes())

    def finish(self, labels: NDArray[np.int64], shard: range) -> Features:
        """All of them, read from disk as they are needed."""
        with _naming_the_disk(self.folder):
            np.save(self.temporary / "labels.npy", labels)
            for file in self._files:
                file.flush()
                os.fsync(file.fileno())
                file.close()
            final = self.folder / self.key
            if not final.exists():  # else another run has finished them while this one waited
                os.rename(self.temporary, final)
        found = _find(self.folder, self.key, shard, say=False)
        assert found is not None, f"{final} was just written"
        return found


def _find(folder: Path, key: str, shard: range, say: bool = True) -> Features | None:
    """Features on disk; None if there are none, or what is there is damaged."""
    if not (folder / key).is_dir():
        return None
    try:
        files = sorted((folder / key).glob("part*.npy"))
        parts = [np.load(file, mmap_mode="r", allow_pickle=False) for file in files]
        labels = np.load(folder / key / "labels.npy", allow_pickle=False)
        if parts and all(part.ndim >= 3 and part.shape[1] == len(labels) == len(shard) for part in parts):
            if say:
                log.info("features: found in %s", folder / key)
            return Features(parts, labels, shard)
        problem: object = "shapes that do not fit"
    except NOT_ARRAYS as error:
        problem = error
    raise InputError(
        f"the features in {folder / key} are damaged ({problem}); remove that folder, and they are made again"
    )


@contextmanager
def _naming_the_disk(folder: Path) -> Iterator[None]:
    """Turn an OSError into an InputError that names the folder and the remedy."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot write features to {folder}: {error.strerror}; make room, or give --feature_cache ram or off"
        ) from error


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


# --------------------------------------------------------------------------- maps of a val split


class _Tail(nn.Module):
    """What follows the maps in a network that pools them by their mean: (B, C, h, w) → (B, K)."""

    def __init__(self, head: nn.Module):
        super().__init__()
        self.maps, self.head = nn.Identity(), head

    def forward(self, maps: Tensor) -> Tensor:
        convolution = next(self.head.parameters()).ndim == 4
        return self.head(self.maps(maps).mean(dim=(2, 3), keepdim=convolution)).flatten(1)


class KeptActivations:
    """The activations that a CAM method reads, of every image of a split: from the second time on, no trunk is run.

    It works for networks whose heads read the mean of these activations, and methods that read them and the heads
    alone. Otherwise, and if they would take more than RAM_BYTES, every call runs the whole network.

    Args:
        method: name in CAM_METHODS.
        length: number of images that the loader gives.
    """

    def __init__(self, method: str, length: int):
        self.method, self.length = method, length
        self._kept: Tensor | None = None
        self._labels, self._indices = (torch.zeros(length, dtype=torch.long) for _ in range(2))
        self._done = 0
        self.usable = not get_method(method).reads_images and not get_method(method).levels

    def source(self, model: Classifier, loader: DataLoader) -> tuple[Classifier, DataLoader]:
        """What to explain, and the loader of its inputs: the model and its images, or its heads and their maps."""
        if self._kept is None or self._done < self.length:
            self._done = 0
            return model, loader
        tail = Classifier(_Tail(model.softmax_head), "head", model.sigmoid_head, "maps", head_is_new=False)
        dataset = torch.utils.data.TensorDataset(self._kept, self._labels, self._indices)
        return tail, parallel_loader(dataset, loader.batch_size, 0)

    def add(
        self,
        model: Classifier,
        activations: Tensor,
        labels: NDArray[np.int64],
        indices: NDArray[np.int64],
        logits: Tensor,
    ) -> None:
        """Keep a batch.

        Args:
            model: whose trunk made them; if it learns, nothing is kept.
            activations: (B, C, h, w). labels, indices: (B,).
            logits: (B, K), of the softmax head.
        """
        self.usable = self.usable and model.trunk_is_frozen and model.method_layers.own_map is None
        if not self.usable or self._done == self.length:
            return
        if self._kept is None:
            size = self.length * activations[0].numel() * activations.element_size()
            if size > RAM_BYTES or not self._follows(model, activations, logits):
                self.usable = False
                return
            self._kept = torch.empty(self.length, *activations.shape[1:], dtype=activations.dtype)
        stop = self._done + len(activations)
        self._kept[self._done : stop] = activations.detach().cpu()
        self._labels[self._done : stop] = torch.from_numpy(labels)
        self._indices[self._done : stop] = torch.from_numpy(indices)
        self._done = stop

    @staticmethod
    @torch.no_grad()
    def _follows(model: Classifier, activations: Tensor, logits: Tensor) -> bool:
        """Whether the head's logits follow from the mean of the activations."""
        try:
            found = _Tail(model.softmax_head).eval()(activations)
        except RuntimeError:  # another number of channels than the head takes
            return False
        return torch.allclose(found.cpu(), logits.cpu(), rtol=1e-4, atol=1e-4 * float(logits.abs().max()))
