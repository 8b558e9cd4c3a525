"""Published ImageNet weights, loaded by torchvision's and timm's own code: from a file, their caches or the network.

Nothing is retried and nothing waits for long: a server that does not answer
within seconds gives an InputError that says which file to fetch, from where, and
how to hand it over.
"""

import os
import socket
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from wsol.backbones.registry import BuildOptions
from wsol.errors import InputError
from wsol.run import checkpoint

SECONDS_TO_ANSWER = 10
# What timm's builders raise for arguments that a network does not know; files and servers raise other kinds.
_OF_THE_BUILDER = (TypeError, NotImplementedError, AssertionError, InputError)


def torchvision_weights(weights, options: BuildOptions, architecture: str) -> dict[str, Tensor]:
    """The state dict of a torchvision weight entry, such as VGG16_Weights.IMAGENET1K_V1.

    `pretrained_path` names its file, or a folder that holds it as the URL calls it
    or, as wsolevaluation does, as ARCHITECTURE.pth.
    """
    file_name = weights.url.rpartition("/")[2]
    if options.pretrained_path:
        return checkpoint.load(_find_file(options.pretrained_path, [file_name, f"{architecture}.pth"], weights.url))[
            "state_dict"
        ]
    cached = os.path.exists(os.path.join(torch.hub.get_dir(), "checkpoints", file_name))
    with _download(weights.url, architecture, cached):
        return weights.get_state_dict(progress=True, check_hash=True)


def create_timm(name: str, options: BuildOptions, **arguments) -> nn.Module:
    """timm.create_model(name, **arguments) with the weights that are options.

    `pretrained_path` names a file that timm reads, or a folder that holds it as
    one of timm's URLs calls it or as NAME.pth.
    """
    if not options.pretrained:
        return timm.create_model(name, **arguments)
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise InputError(f"timm publishes no ImageNet weights for {name}; give --pretrained FALSE")
    url = timm_url(config)
    if not options.pretrained_path:
        with _download(url, name, _is_cached_by_timm(config)):
            return timm.create_model(name, pretrained=True, **arguments)
    names = [u.rpartition("/")[2] for u in (config.url, url) if u] + [f"{name}.pth", f"{name}.safetensors"]
    file = _find_file(options.pretrained_path, list(dict.fromkeys(names)), url)
    if file.suffix not in (".safetensors", ".npz"):
        checkpoint.read(file)  # refuses code, which older releases of timm would execute
    try:
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(file)}, **arguments)
    except _OF_THE_BUILDER:
        raise
    except Exception as error:  # readers of files each raise their own kind
        raise InputError(f"--pretrained_path {file} does not fit {name}: {_one_line(error)}") from None


def timm_url(config) -> str:
    """Where timm gets the weights of a pretrained_cfg from: the Hugging Face hub if it is there, else a plain URL."""
    if config.hf_hub_id:
        from huggingface_hub import hf_hub_url

        return hf_hub_url(config.hf_hub_id, config.hf_hub_filename or "model.safetensors")
    return config.url


def _is_cached_by_timm(config) -> bool:
    if config.hf_hub_id:
        from huggingface_hub import try_to_load_from_cache

        return any(
            isinstance(try_to_load_from_cache(config.hf_hub_id, name), str)
            for name in (config.hf_hub_filename, "model.safetensors", "pytorch_model.bin")
            if name
        )
    return os.path.exists(os.path.join(torch.hub.get_dir(), "checkpoints", config.url.rpartition("/")[2]))


def load_strictly(module: nn.Module, tensors: dict[str, Tensor], what: str) -> None:
    """Load all of a module's tensors; InputError that names what is missing, left over or of another shape."""
    own = module.state_dict()
    # num_batches_tracked came with torch 0.4.1; the oldest published files lack it.
    missing = [n for n in own if n not in tensors and not n.endswith("num_batches_tracked")]
    wrong = (
        missing
        + [n for n in tensors if n not in own]
        + [n for n, t in tensors.items() if n in own and t.shape != own[n].shape]
    )
    if wrong:
        raise InputError(
            f"the ImageNet weights do not fit {what}: {', '.join(wrong[:3])}"
            f"{f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''}; check --pretrained_path"
        )
    module.load_state_dict(tensors, strict=False)


def _find_file(path: str, names: list[str], url: str) -> Path:
    """The file itself, or the first of `names` in the folder `path`."""
    place = Path(path)
    if place.is_file():
        return place
    found = next((place / name for name in names if (place / name).is_file()), None)
    if found is None:
        what = f"the folder holds none of {', '.join(names)}" if place.is_dir() else "no such file or folder"
        raise InputError(f"--pretrained_path {path}: {what}; download {url}")
    return found


@contextmanager
def _download(url: str, architecture: str, cached: bool):
    """Turn every failure of a download, and a server that does not answer, into one line that says what to do."""
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SECONDS_TO_ANSWER)
    try:
        if not cached:
            _ask(url)
        yield
    except _OF_THE_BUILDER:
        raise
    except Exception as error:  # the loaders' libraries each raise their own kind
        raise InputError(
            f"the ImageNet weights of {architecture} cannot be downloaded ({_one_line(error)}); download "
            f"{url} elsewhere and give --pretrained_path FILE_OR_FOLDER, or start without them: "
            "--pretrained FALSE"
        ) from None
    finally:
        socket.setdefaulttimeout(patience)


def _ask(url: str) -> None:
    """Raise if the server cannot be reached; what it answers is the loader's business."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=SECONDS_TO_ANSWER).close()
    except urllib.error.HTTPError as error:
        if error.code in (403, 404, 407) or error.code >= 500:
            raise


def _one_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
