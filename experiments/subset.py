"""Some images of every class of a folder: what an experiment on a small machine trains on.

    python -m experiments.subset data/cifar10-jpeg data/cifar10-10000 --per-class 1000

Of `train/CLASS/*`, the first in the order of their names are copied; `test/` is copied whole.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from experiments.processes import at_least_one


def subset(source: Path, target: Path, per_class: int) -> int:
    """Copies some training images of every class, and all test images; returns how many training images.

    Raises:
        ValueError: if the source has no classes, a class has too few images, or the target is there.
    """
    classes = sorted(path for path in (source / "train").glob("*") if path.is_dir())
    if not classes or not (source / "test").is_dir():
        msg = f"{source} has no train/CLASS and test folders"
        raise ValueError(msg)
    if target.exists():
        msg = f"{target} is there already; remove it, or give another name"
        raise ValueError(msg)
    chosen = {folder: sorted(folder.iterdir())[:per_class] for folder in classes}
    for folder, files in chosen.items():
        if len(files) < per_class:
            msg = f"{folder} has {len(files)} images, fewer than the {per_class} that are asked for"
            raise ValueError(msg)
    for folder, files in chosen.items():
        copies = target / "train" / folder.name
        copies.mkdir(parents=True)
        for file in files:
            shutil.copyfile(file, copies / file.name)
    shutil.copytree(source / "test", target / "test")
    return per_class * len(classes)


def main() -> None:
    """Copies what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="folder with train/CLASS and test/CLASS")
    parser.add_argument("target", type=Path, help="new folder")
    parser.add_argument("--per-class", type=at_least_one, default=1000)
    given = parser.parse_args()
    try:
        count = subset(given.source, given.target, given.per_class)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    sys.stdout.write(f"{given.target}: {count:,} training images, all test images\n")


if __name__ == "__main__":
    main()
