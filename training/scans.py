"""Which large images there are, what each is called, and which mask belongs to it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hqtl_common.errors import InputError
from training.data import images_below

__all__ = ["MASK_ENDINGS", "Scan", "find_scans"]

MASK_ENDINGS = ("_mask", "-mask", "_label", "_gt")


@dataclass(frozen=True, slots=True)
class Scan:
    """A large image.

    Args:
        path: The file.
        source: Name of the photograph, distinct from all others; part of its patches' file names.
        mask: The file of its crack pixels, None without one.
    """

    path: Path
    source: str
    mask: Path | None = None


def find_scans(images: Sequence[Path], masks: Path | None = None) -> tuple[list[Scan], list[Path]]:
    """Images in the order of their names, and the files among them that were taken for masks.

    A mask has its image's name (any suffix), alone or with one of :data:`MASK_ENDINGS`, at the same place below its folder.

    Args:
        images: Image files, or folders of them at any depth.
        masks: Folder of masks (which may be that of the images), or one mask for one image.

    Raises:
        InputError: Nothing is found, two images would have one name, or two masks belong to one image.
    """
    named = {path: name for given in images for path, name in _named(given).items()}
    if masks is not None and not masks.exists():
        raise InputError(f"no file or folder {masks}; expected masks with the names of the images, e.g. NAME.png or NAME_mask.png")
    if masks is not None and masks.is_file():
        return _single(named, masks)
    mask_of = _pair(named, _named(masks) if masks is not None else named)
    taken = set(mask_of.values())
    scans = [Scan(path, _source(name), mask_of.get(path) if masks else None) for path, name in named.items() if path not in taken]
    if not scans:
        raise InputError(f"no image in {', '.join(map(str, images))}")
    _check_distinct(scans)
    return sorted(scans, key=lambda scan: scan.source), sorted(taken & set(named))


def _single(named: dict[Path, str], mask: Path) -> tuple[list[Scan], list[Path]]:
    if len(named) != 1:
        raise InputError(f"{mask} is one mask, but there are {len(named)} images; give the folder of the masks")
    ((path, name),) = named.items()
    return [Scan(path, _source(name), mask)], []


def _named(given: Path) -> dict[Path, str]:
    """Files below a folder, or the file itself, with their place and name without suffix."""
    if given.is_file():
        return {given: given.stem}
    if not given.is_dir():
        raise InputError(f"no file or folder {given}")
    return {path: path.relative_to(given).with_suffix("").as_posix() for path in sorted(images_below(given))}


def _source(name: str) -> str:
    return name.replace("/", "-")


def _pair(images: dict[Path, str], masks: dict[Path, str]) -> dict[Path, Path]:
    """The mask of each image that has one; a file is never its own mask."""
    exact, ended = _by_name((name, path) for path, name in masks.items()), _by_name(_without_ending(masks))
    pairs = {}
    for path, name in images.items():
        found = [mask for mask in exact.get(name, []) if mask not in images] or [mask for mask in ended.get(name, []) if mask != path]
        if len(found) > 1:
            raise InputError(f"{path} has {len(found)} masks: {', '.join(map(str, found))}; keep one")
        if found:
            pairs[path] = found[0]
    return pairs


def _without_ending(masks: dict[Path, str]) -> Iterable[tuple[str, Path]]:
    return ((name.removesuffix(ending), path) for path, name in masks.items() for ending in MASK_ENDINGS if name.endswith(ending))


def _by_name(pairs: Iterable[tuple[str, Path]]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for name, path in pairs:
        found.setdefault(name, []).append(path)
    return found


def _check_distinct(scans: Sequence[Scan]) -> None:
    seen: dict[str, Path] = {}
    for scan in scans:
        if scan.source in seen:
            raise InputError(f"{seen[scan.source]} and {scan.path} would both be the source {scan.source!r}; rename one")
        seen[scan.source] = scan.path
