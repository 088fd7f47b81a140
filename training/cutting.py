"""Large images into a data set of patches: cut on a grid, labelled by masks, each row traceable to its photograph."""

from __future__ import annotations

import csv
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hqtl_common.errors import ConfigError, InputError
from hqtl_common.rasters import MAX_RASTER_PIXELS, Raster, Window, open_raster
from hqtl_common.tiles import TileGrid, tile_grid
from training.labelling import LabelRule, as_mask
from training.scans import Scan

__all__ = ["UNSORTED", "CutReport", "CutSpec", "cut"]

UNSORTED = "unsorted"
_COLUMNS = ("file", "source", "x", "y", "crack_pixels", "class", "page")


@dataclass(frozen=True, slots=True)
class CutSpec:
    """How images are cut.

    Args:
        size: Edge length of a patch in pixels, 8 to 4096.
        stride: Distance of neighbouring patches in pixels of a patch, 1 to ``size``; None is ``size``.
        scale: Patches show the image enlarged (above 1) or reduced (below 1) by this factor, 0.01 to 100.
        rule: When a patch is cracked.
        class_names: Names of the folders of cracked and of sound patches.
        max_ratio: At most so many sound patches per cracked one are kept; None keeps all.
        seed: Seed of that choice.
        max_pixels: Largest width × height of an image.

    Raises:
        ConfigError: A value outside of these ranges.
    """

    size: int = 224
    stride: int | None = None
    scale: float = 1.0
    rule: LabelRule = field(default_factory=LabelRule)
    class_names: tuple[str, str] = ("crack", "no_crack")
    max_ratio: float | None = None
    seed: int = 0
    max_pixels: int = MAX_RASTER_PIXELS

    def __post_init__(self) -> None:
        stride = self.size if self.stride is None else self.stride
        if not 8 <= self.size <= 4096 or not 1 <= stride <= self.size or not 0.01 <= self.scale <= 100:
            raise ConfigError(
                "expected a size of 8 to 4096, a stride of 1 to the size and a scale of 0.01 to 100; "
                f"got {self.size}, {stride} and {self.scale:g}"
            )
        cracked, sound = self.class_names
        if cracked == sound or not all(name.strip(" .") and "/" not in name and not name.startswith(".") for name in self.class_names):
            raise ConfigError(f"the two class names become folders and must differ; got {cracked!r} and {sound!r}")
        if (self.max_ratio is not None and self.max_ratio <= 0) or self.seed < 0:
            raise ConfigError(f"expected a ratio above 0 and a seed from 0; got {self.max_ratio} and {self.seed}")

    def grid(self, raster: Raster) -> TileGrid:
        """Windows of the image, in its own pixels."""
        edge = max(1, round(self.size / self.scale))
        stride = min(edge, max(1, round((self.stride or self.size) / self.scale)))
        return tile_grid(raster.width, raster.height, edge, stride)


@dataclass(frozen=True, slots=True)
class CutReport:
    """What was cut.

    Args:
        out: The folder.
        images: Number of images from which patches were cut.
        patches: Number of patches by folder.
        ambiguous: Number of patches that the rule leaves undecided, dropped.
        surplus: Number of sound patches dropped for balance.
        failed: Message for each image that could not be used.
        warnings: Masks that look as if they meant something else.
    """

    out: Path
    images: int
    patches: dict[str, int]
    ambiguous: int
    surplus: int
    failed: dict[str, str]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "out": str(self.out), "warnings": list(self.warnings)}


@dataclass(frozen=True, slots=True)
class _Patch:
    scan: Scan
    page: int
    x: int
    y: int
    crack_pixels: int | None = None
    cracked: bool | None = None


@dataclass
class _Work:
    """What is found on the way."""

    progress: Callable[[int, str], object]
    failed: dict[str, str] = field(default_factory=dict)
    mask_sizes: dict[Scan, tuple[int, int, int]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    ambiguous: int = 0


def cut(
    scans: Sequence[Scan],
    out: Path,
    spec: CutSpec = CutSpec(),
    labelled: bool = True,
    progress: Callable[[int, str], object] = lambda steps, status: None,
) -> CutReport:
    """Writes ``out/CLASS/SOURCE_XXXX_YYYY.png`` (or ``out/unsorted/…``), ``patches.csv`` and ``cut.json``.

    Grey images stay grey and 16-bit ones stay 16-bit; float images become 16-bit over their declared range. Positions are in
    pixels of the upright image. The folder appears whole at the end or not at all.

    Args:
        scans: Images of :func:`training.scans.find_scans`, in order.
        out: Folder to make; it may exist if it is empty.
        spec: How to cut.
        labelled: Whether masks decide the class; an image without one then counts as failed.
        progress: Called with the number of images done since the last call and what is going on.

    Raises:
        ConfigError: ``out`` exists and is not an empty folder.
        InputError: No patch is left.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{str(out)!r} exists already; give another folder or remove it first")
    out.parent.mkdir(parents=True, exist_ok=True)
    work = _Work(progress)
    plans = {scan: _planned(scan, spec, labelled, work) for scan in scans}
    kept, surplus = _balanced(plans, spec)
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        rows = [row for scan, patches in kept.items() for row in _write_patches(scan, patches, staging, spec, work)]
        report = _finish(rows, staging, out, spec, work, surplus)
        staging.chmod(0o755)
        staging.replace(out)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return report


def _planned(scan: Scan, spec: CutSpec, labelled: bool, work: _Work) -> list[_Patch]:
    """Where the patches of an image lie, with their classes where a mask decides them."""
    work.progress(0, f"looking at {scan.source}")
    try:
        if not labelled:
            with open_raster(scan.path, spec.max_pixels) as raster:
                return [_Patch(scan, page, x, y) for page in range(raster.num_pages) for x, y in spec.grid(raster)]
        if scan.mask is None:
            raise InputError("no mask with its name was found")
        return _labelled(scan, scan.mask, spec, work)
    except InputError as error:
        work.failed[str(scan.path)] = str(error)
        return []


def _labelled(scan: Scan, mask: Path, spec: CutSpec, work: _Work) -> list[_Patch]:
    patches, highest = [], 0
    with open_raster(mask, spec.max_pixels) as raster:
        work.mask_sizes[scan] = _size(raster)
        grid = spec.grid(raster)
        area = (spec.size / grid.size) ** 2  # pixels of the patch per pixel of the image
        for page in range(raster.num_pages):
            for x, y in grid:
                window = as_mask(raster.read(x, y, grid.size, grid.size, page))
                highest = max(highest, int(window.max()))
                crack, ignored = (count * area for count in spec.rule.count(window))
                patches.append(_Patch(scan, page, x, y, round(crack), spec.rule.cracked(crack, ignored)))
    if 0 < highest < spec.rule.threshold and highest != spec.rule.ignore_value:
        work.warnings.append(f"{mask}: no value reaches {spec.rule.threshold}, the highest is {highest}; is another threshold meant?")
    work.ambiguous += sum(patch.cracked is None for patch in patches)
    return [patch for patch in patches if patch.cracked is not None]


def _balanced(plans: dict[Scan, list[_Patch]], spec: CutSpec) -> tuple[dict[Scan, list[_Patch]], int]:
    """The patches to write, and the number of sound ones left out."""
    sound = [patch for patches in plans.values() for patch in patches if patch.cracked is False]
    num_cracked = sum(patch.cracked is True for patches in plans.values() for patch in patches)
    if spec.max_ratio is None or len(sound) <= (limit := int(spec.max_ratio * num_cracked)):
        return plans, 0
    order = np.random.default_rng(spec.seed).permutation(len(sound))
    dropped = {sound[index] for index in order[limit:]}
    return {scan: [patch for patch in patches if patch not in dropped] for scan, patches in plans.items()}, len(dropped)


def _write_patches(scan: Scan, patches: list[_Patch], folder: Path, spec: CutSpec, work: _Work) -> list[dict[str, object]]:
    """Rows of the table for the patches of one image; none if the image cannot be read."""
    rows: list[dict[str, object]] = []
    try:
        for row in _written(scan, patches, folder, spec, work) if patches else ():
            rows.append(row)
            work.progress(0, f"{scan.source}: {len(rows)} of {len(patches)} patches")
    except InputError as error:
        work.failed[str(scan.path)] = str(error)
        for row in rows:
            (folder / str(row["file"])).unlink()
        rows = []
    work.progress(1, scan.source)
    return rows


def _written(scan: Scan, patches: list[_Patch], folder: Path, spec: CutSpec, work: _Work) -> Iterator[dict[str, object]]:
    with open_raster(scan.path, spec.max_pixels) as raster:
        if (mask := work.mask_sizes.get(scan, _size(raster))) != _size(raster):
            shown = [f"{width} × {height} pixels on {pages} page(s)" for width, height, pages in (_size(raster), mask)]
            raise InputError(f"the image has {shown[0]}, its mask {shown[1]}")
        edge = spec.grid(raster).size
        for patch in patches:
            row = _row(patch, raster.num_pages, spec)
            path = folder / str(row["file"])
            path.parent.mkdir(exist_ok=True)
            _save(raster.read(patch.x, patch.y, edge, edge, patch.page), spec.size, path)
            yield row


def _size(raster: Raster) -> tuple[int, int, int]:
    return raster.width, raster.height, raster.num_pages


def _row(patch: _Patch, num_pages: int, spec: CutSpec) -> dict[str, object]:
    label = UNSORTED if patch.cracked is None else spec.class_names[0 if patch.cracked else 1]
    page = f"-p{patch.page:03d}" if num_pages > 1 else ""
    return {
        "file": f"{label}/{patch.scan.source}{page}_{patch.x:04d}_{patch.y:04d}.png",
        "source": patch.scan.source,
        "x": patch.x,
        "y": patch.y,
        "crack_pixels": patch.crack_pixels,
        "class": None if patch.cracked is None else label,
        "page": patch.page,
    }


def _save(window: Window, size: int, path: Path) -> None:
    image = Image.fromarray(window)
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    if image.mode == "F":
        image = Image.fromarray(np.rint(np.asarray(image) * 65535).astype(np.uint16))
    image.save(path)


def _finish(rows: list[dict[str, object]], folder: Path, out: Path, spec: CutSpec, work: _Work, surplus: int) -> CutReport:
    if not rows:
        reasons = "; ".join(f"{path}: {message}" for path, message in list(work.failed.items())[:3])
        raise InputError(
            f"no patch is left: {reasons or f'{work.ambiguous} are ambiguous, {surplus} were dropped as too many without a crack'}"
        )
    with (folder / "patches.csv").open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    counts = dict(sorted(Counter(str(row["file"]).partition("/")[0] for row in rows).items()))
    images = len({row["source"] for row in rows})
    report = CutReport(out, images, counts, work.ambiguous, surplus, work.failed, tuple(work.warnings))
    record = {**report.to_dict(), "options": asdict(spec)}
    (folder / "cut.json").write_text(json.dumps(record, indent=2) + "\n")
    return report
