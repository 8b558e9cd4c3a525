#!/usr/bin/env python
"""Convert a checkpoint of ours to the format of wsolevaluation and Dual-CAM.

    python scripts/export_checkpoint.py experiments/mine/last_checkpoint.pth.tar theirs.pth.tar
    python scripts/export_checkpoint.py --module IN OUT       # names under `module.`, as DataParallel saves them

OUT has `architecture`, `epoch`, `state_dict` and `optimizer` and nothing else.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from wsol.errors import InputError
from wsol.run import checkpoint, command
from wsol.tensor_files import load


def export(source: Path, target: Path, module: bool = False) -> int:
    """Write `target` and return the number of tensors.

    Raises:
        InputError: source is not a checkpoint, or target exists.
    """
    content = load(source)
    if Path(target).exists():
        raise InputError(f"{target} exists; remove it or choose another name")
    prefix = "module." if module else ""
    checkpoint.save(
        target,
        {
            "architecture": content.get("architecture", ""),
            "epoch": content.get("epoch", 0),
            "state_dict": {prefix + name: tensor for name, tensor in content["state_dict"].items()},
            "optimizer": content.get("optimizer"),
        },
    )
    return len(content["state_dict"])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", metavar="IN", help="checkpoint of a run")
    parser.add_argument("target", metavar="OUT", help="file to write")
    parser.add_argument("--module", action="store_true", help="put every name under `module.`")
    arguments = parser.parse_args(argv)
    count = export(Path(arguments.source), Path(arguments.target), arguments.module)
    print(f"{arguments.target}: {count} tensors")


if __name__ == "__main__":
    sys.exit(command.run(main))
