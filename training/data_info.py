"""What is in a data set, and what is wrong with it: counts, sizes, broken files, duplicates, leakage between splits."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from PIL import Image

from hqtl_common.errors import InputError
from hqtl_common.preprocess import open_image, read_file
from training.data import SPLIT_NAMES, ImageDataset, Sample, group_keys, load_dataset, merge_identical
from training.duplicates import Fingerprint, fingerprint, joined, near_pairs
from training.splits import Split, make_split, parse_ratio

__all__ = ["DuplicateSet", "Survey", "survey"]

_THREADS = 4


@dataclass(frozen=True, slots=True)
class DuplicateSet:
    """Images that show the same.

    Args:
        files: Relative paths.
        contents: SHA-256 (hex) of the bytes of each.
        classes: Class of each.
        parts: Part of the split of each, empty without a split.
        sources: Source photograph of each, empty without grouping.
    """

    files: tuple[str, ...]
    contents: tuple[str, ...]
    classes: tuple[str, ...]
    parts: tuple[str, ...]
    sources: tuple[str, ...]

    @property
    def kind(self) -> str:
        """``"identical"`` where all have equal bytes, else ``"near"``."""
        return _kind(self.contents)

    @property
    def repeated(self) -> int:
        """How many contents two or more of the files share."""
        return sum(count > 1 for count in Counter(self.contents).values())

    @property
    def leaks(self) -> list[tuple[str, str, str]]:
        """(kind, file, file) of every pair on two sides of the split; a near set may hold identical pairs."""
        pairs = combinations(zip(self.files, self.contents, self.parts, strict=False), 2)
        return [(_kind((a, b)), one, other) for (one, a, here), (other, b, there) in pairs if here != there]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "kind": self.kind,
            "files": list(self.files),
            "classes": list(self.classes),
            "parts": list(self.parts),
            "sources": list(self.sources),
            "leaks": [list(pair) for pair in self.leaks],
        }


@dataclass(frozen=True, slots=True)
class Survey:
    """The answer of :func:`survey`.

    Args:
        dataset: The folder.
        counts: Images by part (``all`` without a split) and class.
        sizes: Images by ``WIDTH×HEIGHT``, most frequent first.
        kinds: Images by format, mode and bits per channel, most frequent first.
        divided: Whether there is a split, given or asked for, across which leakage was looked for.
        num_sources: Number of source photographs; None without grouping.
        broken: Message by relative path.
        duplicates: Sets of images that show the same.
    """

    dataset: ImageDataset
    counts: dict[str, dict[str, int]]
    sizes: dict[str, int]
    kinds: dict[str, int]
    divided: bool
    num_sources: int | None
    broken: dict[str, str]
    duplicates: tuple[DuplicateSet, ...]

    @property
    def leaks(self) -> list[tuple[str, str, str]]:
        """(kind, file, file) of every pair on two sides of the split."""
        return [leak for found in self.duplicates for leak in found.leaks]

    @property
    def conflicts(self) -> list[DuplicateSet]:
        """Sets whose members stand in different classes."""
        return [found for found in self.duplicates if len(set(found.classes)) > 1]

    @property
    def across_sources(self) -> list[DuplicateSet]:
        """Sets whose members come from different photographs by name."""
        return [found for found in self.duplicates if len(set(found.sources)) > 1]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "data": str(self.dataset.root),
            "labels": list(self.dataset.labels),
            "images": len(self.dataset.samples),
            "counts": self.counts,
            "sizes": self.sizes,
            "kinds": self.kinds,
            "divided": self.divided,
            "sources": self.num_sources,
            "broken": self.broken,
            "duplicates": [found.to_dict() for found in self.duplicates],
            "leaks": [list(leak) for leak in self.leaks],
            "label_conflicts": len(self.conflicts),
            "across_sources": len(self.across_sources),
        }


@dataclass(frozen=True, slots=True)
class _Look:
    """One file."""

    content: str = ""
    size: str = ""
    kind: str = ""
    print: Fingerprint | None = None
    error: str = ""


def survey(
    root: Path,
    split: str | None = None,
    group_by: str = "none",
    seed: int = 0,
    progress: Callable[[int], object] = lambda steps: None,
) -> Survey:
    """Reads every image of a folder once.

    Args:
        root: The folder.
        split: A ratio like ``70/15/15``: leakage is looked for across the split that a training with it, ``group_by`` and ``seed``
            would make. A folder that is itself divided is looked at as it is. None: across nothing.
        group_by: See :func:`training.data.group_keys`.
        seed: Seed of that split.
        progress: Called with the number of images read since the last call.

    Raises:
        ConfigError: A ratio or grouping that does not parse.
        InputError: The folder has not the layout of a data set, or the split cannot be made.
    """
    dataset = load_dataset(root)
    groups = group_keys(dataset, group_by)
    ratio = parse_ratio(split) if split else None
    with ThreadPoolExecutor(_THREADS) as pool:
        looks = []
        for look in pool.map(_look, dataset.samples):
            looks.append(look)
            progress(1)
    divided = None
    if ratio or dataset.fixed_split:
        hashes = [look.content or sample.relative for look, sample in zip(looks, dataset.samples, strict=True)]
        merged = None if groups is None else merge_identical(groups, hashes)
        divided = Split(**dataset.fixed_split) if dataset.fixed_split else make_split(dataset, ratio or (0, 0, 0), seed, merged)
    return Survey(
        dataset,
        divided.counts(dataset) if divided else {"all": _by_label(dataset)},
        dict(Counter(look.size for look in looks if not look.error).most_common()),
        dict(Counter(look.kind for look in looks if not look.error).most_common()),
        divided is not None,
        None if groups is None else len(set(groups)),
        {sample.relative: look.error for sample, look in zip(dataset.samples, looks, strict=True) if look.error},
        tuple(_duplicates(dataset, looks, _parts(divided, len(looks)), groups)),
    )


def _kind(contents: Sequence[str]) -> str:
    return "identical" if len(set(contents)) == 1 else "near"


def _look(sample: Sample) -> _Look:
    try:
        data = read_file(sample.path)
        content = hashlib.sha256(data).hexdigest()
        image = open_image(data)
    except InputError as error:
        return _Look(error=str(error))
    with Image.open(io.BytesIO(data)) as header:
        bits = "16 bits or more" if image.mode == "F" else "8 bits"
        kind = f"{header.format} {header.mode}, {bits}"
    return _Look(content, f"{image.width}×{image.height}", kind, fingerprint(image))


def _by_label(dataset: ImageDataset) -> dict[str, int]:
    counts = Counter(sample.label for sample in dataset.samples)
    return {label: counts[number] for number, label in enumerate(dataset.labels)}


def _parts(split: Split | None, count: int) -> list[str]:
    if split is None:
        return []
    part_of = {index: name for name in SPLIT_NAMES for index in split.indices(name)}
    return [part_of[index] for index in range(count)]


def _duplicates(dataset: ImageDataset, looks: Sequence[_Look], parts: Sequence[str], groups: Sequence[str] | None) -> list[DuplicateSet]:
    """Near duplicates are looked for among different contents only: a thousand equal files are one."""
    first: dict[str, int] = {}
    identical = [(first.setdefault(look.content, index), index) for index, look in enumerate(looks) if look.content and not look.error]
    distinct = [(index, print_) for index in first.values() if (print_ := looks[index].print) is not None]
    near = [(distinct[i][0], distinct[j][0]) for i, j in near_pairs([print_ for _, print_ in distinct])]
    found = []
    for members in joined(len(looks), [*identical, *near]):
        samples = [dataset.samples[index] for index in members]
        found.append(
            DuplicateSet(
                tuple(sample.relative for sample in samples),
                tuple(looks[index].content for index in members),
                tuple(dataset.labels[sample.label] for sample in samples),
                tuple(parts[index] for index in members) if parts else (),
                tuple(groups[index] for index in members) if groups else (),
            )
        )
    return found
