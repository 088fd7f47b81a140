"""The images of a study: which data sets a folder holds, and a subset of the paper's size."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hqtl_common.errors import InputError
from training.data import ImageDataset, load_dataset
from training.metrics import find_positive
from training.paper.known import PAPER_IMAGES

__all__ = ["find_data_sets", "paper_subset"]

_DEPTH = 3
_SEED = 0


def find_data_sets(folder: Path) -> list[ImageDataset]:
    """The data set that a folder is, or those that lie up to three levels below it, the largest first.

    A folder of data sets is one that cannot be read as a data set, or whose classes are not called cracks while those of data
    sets below it are.

    Raises:
        InputError: There is none.
    """
    try:
        whole, error = load_dataset(folder), None
    except InputError as reason:
        whole, error = None, reason
    if whole is not None and _speaks_of_cracks(whole):
        return [whole]
    below = [found for found in _below(folder, _DEPTH) if whole is None or _speaks_of_cracks(found)] if folder.is_dir() else []
    if below:
        return sorted(below, key=lambda dataset: (-len(dataset.samples), str(dataset.root)))
    if whole is None:
        assert error is not None
        raise error
    return [whole]


def paper_subset(dataset: ImageDataset, out: Path) -> Path:
    """A folder with as many images as the paper has (723 with cracks, 500 without), drawn at random with a fixed seed.

    The images are links to those of the data set. A data set that is divided itself, has other than two classes, or too few
    images in one of them is used as it is.

    Args:
        dataset: Where they are drawn from.
        out: The folder to make; one that is there is used.
    """
    chosen = None if out.is_dir() else _choose(dataset)
    if out.is_dir():
        return out
    if chosen is None:
        return dataset.root
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for index in chosen:
        sample = dataset.samples[index]
        target = partial / sample.relative
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(sample.path.resolve())
    if (table := dataset.root / "patches.csv").is_file():
        shutil.copyfile(table, partial / table.name)
    partial.replace(out)
    return out


def _choose(dataset: ImageDataset) -> list[int] | None:
    if dataset.fixed_split is not None or len(dataset.labels) != 2:
        return None
    positive = dataset.labels.index(find_positive(dataset.labels))
    rng = np.random.default_rng(_SEED)
    chosen: list[int] = []
    for label, wanted in ((positive, PAPER_IMAGES[0]), (1 - positive, PAPER_IMAGES[1])):
        members = [index for index, sample in enumerate(dataset.samples) if sample.label == label]
        if len(members) < wanted:
            return None
        chosen += rng.permutation(members)[:wanted].tolist()
    return sorted(chosen)


def _below(folder: Path, depth: int) -> list[ImageDataset]:
    found: list[ImageDataset] = []
    for entry in _folders(folder):
        try:
            dataset = load_dataset(entry)
        except InputError:
            dataset = None
        if dataset is not None and _is_flat(dataset):
            found.append(dataset)
        elif depth > 1:
            found += _below(entry, depth - 1)
    return found


def _speaks_of_cracks(dataset: ImageDataset) -> bool:
    return any("crack" in label.lower() for label in dataset.labels)


def _is_flat(dataset: ImageDataset) -> bool:
    """Images lie right in the class folders: otherwise a folder of data sets would pass for one whose classes are the sets."""
    levels = 2 if dataset.fixed_split is None else 3
    return all(len(Path(sample.relative).parts) == levels for sample in dataset.samples)


def _folders(folder: Path) -> Sequence[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.is_symlink() and not entry.name.startswith("."))
