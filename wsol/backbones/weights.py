"""Published ImageNet weights, from a file, from the caches of torch.hub and the Hugging Face hub, or from the network.

torchvision and timm do the loading. A server that does not answer within seconds gives an InputError that says which
file to download, from where, and how to use it.
"""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import hf_hub_url, try_to_load_from_cache
from timm.models import PretrainedCfg
from torch import Tensor, nn
from torchvision.models import Weights

from wsol.backbones.registry import BuildOptions
from wsol.errors import InputError, first_few
from wsol.tensor_files import load

SECONDS_TO_ANSWER = 10
HUB_PREFIXES = ("hf-hub:", "hf_hub:")
# What timm's builders raise for arguments that a network does not support; files and servers raise other types.
_BUILDER_ERRORS = (TypeError, NotImplementedError, AssertionError, InputError)


def torchvision_weights(weights: Weights, options: BuildOptions, architecture: str) -> dict[str, Tensor]:
    """The state dict of a torchvision weight entry, such as VGG16_Weights.IMAGENET1K_V1.

    `options.pretrained_path` is its file, or a folder with the file under the name in the URL or, as in wsolevaluation,
    ARCHITECTURE.pth.
    """
    file_name = weights.url.rpartition("/")[2]
    if options.pretrained_path:
        return load(_find_file(options.pretrained_path, [file_name, f"{architecture}.pth"], weights.url))["state_dict"]
    with _download(architecture, weights.url, cached=_in_torch_cache(weights.url)):
        return weights.get_state_dict(progress=True, check_hash=True)


def create_timm(name: str, options: BuildOptions, **arguments: Any) -> nn.Module:
    """timm.create_model(name, **arguments), with pretrained weights if the options ask for them.

    `options.pretrained_path` is their file, or a folder with the file under the name in one of timm's URLs, or as
    NAME.pth or NAME.safetensors.
    """
    if not options.pretrained:
        return timm.create_model(name, **arguments)
    config = timm_config(name)
    if config is None or not config.has_weights:
        raise InputError(f"timm publishes no ImageNet weights for {name}; give --pretrained FALSE")
    url = _timm_url(config)
    if not options.pretrained_path:
        with _download(name, url, cached=_in_hub_cache(config) if config.hf_hub_id else _in_torch_cache(url)):
            return timm.create_model(name, pretrained=True, **arguments)
    stem = name.rpartition("/")[2]
    names = [str(u).rpartition("/")[2] for u in (config.url, url) if u] + [f"{stem}.pth", f"{stem}.safetensors"]
    file = _find_file(options.pretrained_path, list(dict.fromkeys(names)), url)
    source = {"file": str(file)} if file.suffix == ".npz" else {"state_dict": load(file)["state_dict"]}
    try:
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=source, **arguments)
    except _BUILDER_ERRORS:
        raise
    except Exception as error:  # timm's filters and torch raise several types
        raise InputError(f"--pretrained_path {file} does not fit {name}: {_first_line(error)}") from None


@lru_cache
def timm_config(name: str) -> PretrainedCfg | None:
    """What timm knows about a name's weights; for `hf-hub:ORGANISATION/NAME`, the config.json of that repository.

    Raises:
        InputError: the repository does not exist or cannot be reached.
    """
    if not name.startswith(HUB_PREFIXES):
        return timm.get_pretrained_cfg(name, allow_unregistered=True)
    hub_id = name.partition(":")[2]
    repository, _, revision = hub_id.partition("@")
    try:
        url = hf_hub_url(repository, "config.json", revision=revision or None)
        if not isinstance(try_to_load_from_cache(repository, "config.json", revision=revision or None), str):
            _ask(url)
        config, _, _ = timm.models.load_model_config_from_hf(hub_id)
        return PretrainedCfg(**config)
    except Exception as error:  # the hub's client raises many types
        raise InputError(
            f"unknown architecture '{name}': its config.json cannot be read ({_first_line(error)}); check the name, "
            "or give the name of its network in timm and its weights with --pretrained_path FILE_OR_FOLDER"
        ) from None


def _timm_url(config: PretrainedCfg) -> str:
    """Where timm downloads weights from: the Hugging Face hub if they are there, else a plain URL."""
    if config.hf_hub_id:
        repository, _, revision = config.hf_hub_id.partition("@")
        return hf_hub_url(repository, config.hf_hub_filename or "model.safetensors", revision=revision or None)
    return str(config.url or "")


def _in_hub_cache(config: PretrainedCfg) -> bool:
    repository, _, revision = (config.hf_hub_id or "").partition("@")
    names = (config.hf_hub_filename, "model.safetensors", "pytorch_model.bin")
    paths = [try_to_load_from_cache(repository, name, revision=revision or None) for name in names if name]
    return any(isinstance(path, str) for path in paths)


def _in_torch_cache(url: str) -> bool:
    return os.path.exists(os.path.join(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2]))


def load_strictly(module: nn.Module, tensors: dict[str, Tensor], what: str) -> None:
    """Load all tensors of a module; InputError that lists those missing, left over or of another shape."""
    own = module.state_dict()
    # num_batches_tracked was added in torch 0.4.1; the oldest published files lack it.
    missing = [n for n in own if n not in tensors and not n.endswith("num_batches_tracked")]
    left_over = [n for n in tensors if n not in own]
    reshaped = [n for n, t in tensors.items() if n in own and t.shape != own[n].shape]
    if wrong := missing + left_over + reshaped:
        raise InputError(f"the ImageNet weights do not fit {what}: {first_few(wrong)}; check --pretrained_path")
    module.load_state_dict(tensors, strict=False)


def _find_file(path: str, names: list[str], url: str) -> Path:
    """The file itself, or the first of `names` in the folder `path`."""
    place = Path(path)
    if place.is_file():
        return place
    file = next((place / name for name in names if (place / name).is_file()), None)
    if file is None:
        what = f"the folder has none of {', '.join(names)}" if place.is_dir() else "no such file or folder"
        raise InputError(f"--pretrained_path {path}: {what}; download {url}")
    return file


@contextmanager
def _download(architecture: str, url: str, *, cached: bool) -> Iterator[None]:
    """Turn any failure to load from `url` in the block into one line that says what to do.

    The server is asked first, unless the file is cached: the hub's client tries again for minutes, and torch.hub waits
    forever.
    """
    try:
        if not cached:
            _ask(url)
        yield
    except _BUILDER_ERRORS:
        raise
    except Exception as error:  # the libraries that load raise many types
        raise InputError(
            f"the ImageNet weights of {architecture} cannot be downloaded ({_first_line(error)}); download "
            f"{url} elsewhere and give --pretrained_path FILE_OR_FOLDER, or start without them: "
            "--pretrained FALSE"
        ) from None


def _ask(url: str) -> None:
    """Raise if the server cannot be reached or does not have the file."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=SECONDS_TO_ANSWER).close()
    except urllib.error.HTTPError as error:
        if error.code in (403, 404, 407) or error.code >= 500:
            raise


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
