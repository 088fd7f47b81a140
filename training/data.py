"""A folder of labelled photographs as a data set: what lies where, which class, which source photograph.

The layout is torchvision's ImageFolder (one folder per class), or three folders ``train/ val/ test/`` of it.
Nothing here decodes an image.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from hqtl_common.errors import ConfigError, InputError
from hqtl_common.preprocess import IMAGE_SUFFIXES

__all__ = [
    "SPLIT_NAMES",
    "ImageDataset",
    "Sample",
    "content_hashes",
    "dataset_digest",
    "group_keys",
    "images_below",
    "lines_digest",
    "load_dataset",
    "merge_identical",
]

SPLIT_NAMES = ("train", "val", "test")
_SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_LAYOUT = "expected one folder per class with images below it, at least two classes (DATA/crack/a.png, DATA/no_crack/b.png)"
_PATCH_STEM = re.compile(r"(.+)_\d{4,5}_\d{4,5}")
_HASH_THREADS = 8


@dataclass(frozen=True, slots=True)
class Sample:
    """One image file.

    Args:
        path: Where the file lies, as reached through the root that was given.
        relative: Path below the root with forward slashes; names the sample wherever the folder lies.
        label: Index into :attr:`ImageDataset.labels`.
    """

    path: Path
    relative: str
    label: int


@dataclass(frozen=True, slots=True)
class ImageDataset:
    """A folder of labelled images in a fixed order.

    Args:
        root: The folder.
        labels: C class names, sorted (the order of torchvision's ImageFolder).
        samples: N samples, sorted by :attr:`Sample.relative`.
        fixed_split: Sample indices for each of ``train``, ``val`` and ``test`` when the folder itself is
            divided so; otherwise None.
    """

    root: Path
    labels: tuple[str, ...]
    samples: tuple[Sample, ...]
    fixed_split: dict[str, tuple[int, ...]] | None = None


def load_dataset(root: Path | str, suffixes: Collection[str] = IMAGE_SUFFIXES) -> ImageDataset:
    """Lists the images of a folder: C ≥ 2 classes, N samples in an order that depends on names only.

    Nested folders below a class belong to it. Hidden files and folders, links to folders and files without an
    image's suffix are skipped. With folders ``train``, ``val`` (or ``valid``, ``validation``) and ``test`` in the
    root, each of them holds the class folders.

    Args:
        root: The folder.
        suffixes: How the names of its files end, lower case.

    Raises:
        InputError: The folder is missing or unreadable, has fewer than two classes, a class without images or whose
            name is no text, only some of the three split folders, something else beside them, or other classes in one.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"no folder {root}; {_LAYOUT}")
    folders = _split_folders(root)
    parts = {name: _class_images(folder, suffixes) for name, folder in folders.items()} if folders else {"": _class_images(root, suffixes)}
    labels = _common_labels(parts)
    found = [(path, label) for classes in parts.values() for label, paths in classes.items() for path in paths]
    samples = sorted(
        (Sample(path, path.relative_to(root).as_posix(), labels.index(label)) for path, label in found),
        key=lambda sample: sample.relative,
    )
    fixed = {name: _indices_below(samples, folder.name) for name, folder in folders.items()} if folders else None
    return ImageDataset(root, labels, tuple(samples), fixed)


def content_hashes(samples: Sequence[Sample]) -> list[str]:
    """SHA-256 (64 hex digits) of the bytes of each file, N entries in the order given; each file is read once.

    Args:
        samples: N samples.

    Raises:
        InputError: A file cannot be read.
    """
    with ThreadPoolExecutor(_HASH_THREADS) as pool:
        return list(pool.map(_file_hash, samples))


def dataset_digest(dataset: ImageDataset, hashes: Sequence[str]) -> str:
    """SHA-256 (hex) over relative path, class name and content of every image; the same wherever the folder lies.

    Args:
        dataset: N samples.
        hashes: N content hashes of :func:`content_hashes`.
    """
    labels = dataset.labels
    return lines_digest((s.relative, labels[s.label], content) for s, content in zip(dataset.samples, hashes, strict=True))


def lines_digest(rows: Iterator[tuple[str, ...]]) -> str:
    """SHA-256 (hex) over rows of strings, whatever their order; strings may hold undecodable bytes of file names."""
    text = "".join("\0".join(row) + "\n" for row in sorted(rows))
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def group_keys(dataset: ImageDataset, group_by: str) -> list[str] | None:
    """The source photograph of each sample, N keys; samples with one key must stay in one split.

    Args:
        dataset: N samples.
        group_by: ``"none"``: no grouping, the answer is None. ``"source"``: column ``source`` of ``patches.csv`` in
            the root or, without that file, the file name up to its position ``_NNNN_NNNN`` of four or five digits (a
            name without one is a group of its own). A file that was sorted into another folder is found in the table by
            its name. Anything else is a regular expression searched in the relative path; its first group
            that took part in the match, or else the whole match, is the key.

    Raises:
        ConfigError: The regular expression does not compile.
        InputError: ``patches.csv`` cannot be read or does not list a sample, or the expression finds nothing in one.
    """
    if group_by == "none":
        return None
    if group_by != "source":
        key_of = _pattern_key(group_by)
    elif (table := dataset.root / "patches.csv").is_file():
        key_of = _table_key(table)
    else:
        key_of = _patch_key
    return [key_of(sample) for sample in dataset.samples]


def merge_identical(groups: Sequence[str], hashes: Sequence[str]) -> list[str]:
    """Group keys (N) in which groups that share an image of equal content have become one.

    Args:
        groups: N keys of :func:`group_keys`.
        hashes: N content hashes of :func:`content_hashes`.
    """
    parent = {group: group for group in groups}

    def root_of(group: str) -> str:
        while parent[group] != group:
            parent[group] = group = parent[parent[group]]
        return group

    first: dict[str, str] = {}
    for group, content in zip(groups, hashes, strict=True):
        parent[root_of(group)] = root_of(first.setdefault(content, group))
    return [root_of(group) for group in groups]


def images_below(folder: Path, suffixes: Collection[str] = IMAGE_SUFFIXES) -> Iterator[Path]:
    """Image files by suffix at any depth, in no order, but nothing hidden and no links to folders; InputError if unreadable."""
    for parent, folders, files in os.walk(folder, onerror=_raise_unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (path for path in (Path(parent, name) for name in files) if _is_image(path, suffixes))


def _split_folders(root: Path) -> dict[str, Path] | None:
    folders = _visible_folders(root)
    found = {_SPLIT_FOLDERS[folder.name]: folder for folder in folders if folder.name in _SPLIT_FOLDERS}
    if not found:
        return None
    if missing := [name for name in SPLIT_NAMES if name not in found]:
        raise InputError(
            f"{root} has the folder {', '.join(f.name for f in found.values())} but not {', '.join(missing)}; "
            f"give all of train, val and test, or put the class folders right under {root} and let them be split"
        )
    if extra := [folder.name for folder in folders if folder not in found.values()]:
        raise InputError(f"{root} is divided into train, val and test; move away what stands beside: {', '.join(extra)}")
    return {name: found[name] for name in SPLIT_NAMES}


def _class_images(folder: Path, suffixes: Collection[str]) -> dict[str, list[Path]]:
    classes = {below.name: list(images_below(below, suffixes)) for below in _visible_folders(folder)}
    empty = [name for name, paths in classes.items() if not paths]
    if len(classes) >= 2 and not empty:
        return classes
    got = f"{folder} has no image in {', '.join(empty)}" if empty else f"{folder} has {len(classes)} class folder(s)"
    loose = sum(_is_image(entry, suffixes) for entry in folder.iterdir())
    hint = f"; {loose} image(s) lie loose in it: move them into class folders" if loose else ""
    raise InputError(f"{got}; {_LAYOUT}; suffixes {' '.join(sorted(suffixes))}, links to folders are not followed{hint}")


def _common_labels(parts: dict[str, dict[str, list[Path]]]) -> tuple[str, ...]:
    union = {label for classes in parts.values() for label in classes}
    for name, classes in parts.items():
        if missing := sorted(union - set(classes)):
            raise InputError(f"the folder {name} lacks the class {', '.join(missing)}; each split needs the same classes")
    if wrong := sorted(label for label in union if label != label.encode(errors="replace").decode()):
        raise InputError(f"the name of a class must be text in UTF-8; rename the folder {', '.join(map(ascii, wrong))}")
    return tuple(sorted(union))


def _indices_below(samples: Sequence[Sample], folder: str) -> tuple[int, ...]:
    return tuple(index for index, sample in enumerate(samples) if sample.relative.startswith(f"{folder}/"))


def _visible_folders(folder: Path) -> list[Path]:
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise _unreadable(error) from error
    return [entry for entry in entries if entry.is_dir() and not entry.is_symlink() and not entry.name.startswith(".")]


def _is_image(path: Path, suffixes: Collection[str]) -> bool:
    return path.name.lower().endswith(tuple(suffixes)) and not path.name.startswith(".") and path.is_file()


def _raise_unreadable(error: OSError) -> None:
    raise _unreadable(error) from error


def _unreadable(error: OSError) -> InputError:
    return InputError(f"cannot read {error.filename}: {error.strerror}; check that it exists and its permissions")


def _file_hash(sample: Sample) -> str:
    try:
        with sample.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(error) from error


def _pattern_key(pattern: str) -> Callable[[Sample], str]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"group-by must be none, source or a regular expression; got {pattern!r}: {error}") from error

    def key_of(sample: Sample) -> str:
        match = expression.search(sample.relative)
        key = next((group for group in match.groups() if group), match.group()) if match else ""
        if not key:
            raise InputError(f"group-by {pattern!r} finds nothing in {sample.relative}; it must match every image")
        return key

    return key_of


def _table_key(table: Path) -> Callable[[Sample], str]:
    sources = _read_sources(table)
    names = Counter(Path(file).name for file in sources)
    by_name = {Path(file).name: source for file, source in sources.items() if names[Path(file).name] == 1}

    def key_of(sample: Sample) -> str:
        source = sources.get(sample.relative) or by_name.get(Path(sample.relative).name)
        if source is None:
            raise InputError(f"{table} gives no source for {sample.relative}; list every image, or use another group-by")
        return source

    return key_of


def _read_sources(table: Path) -> dict[str, str]:
    try:
        with table.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            rows = list(csv.DictReader(file))
    except (OSError, csv.Error) as error:
        raise InputError(f"cannot read {table}: {error}; expected a CSV file with the columns file and source") from error
    if rows and not {"file", "source"} <= rows[0].keys():
        raise InputError(f"{table} needs the columns file and source; got {', '.join(map(str, rows[0]))}")
    return {row["file"]: row["source"] for row in rows if row["source"]}


def _patch_key(sample: Sample) -> str:
    match = _PATCH_STEM.fullmatch(Path(sample.relative).stem)
    return match[1] if match else sample.relative
