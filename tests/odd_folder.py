"""A folder of any number of files as inspectors may have them: odd names, corrupt ones, copies; the same for the same seed."""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

PER_FOLDER = 1000
ODD_NAMES = [
    b"line\nbreak %d",
    b'"quoted", %d',
    b"n\xe9\xff\xfe %d",
    b"=1+%d",
    b" %d ",
    b"a'b;c\\d\t%d",
    "größe 漢字 %d".encode(),
    b"%d" + b"x" * 200,
]
KINDS = [(".jpg", "JPEG"), (".PNG", "PNG"), (".bmp", "BMP"), (".tif", "TIFF"), (".jpeg", "JPEG")]


def make_folder(folder: Path, files: int, seed: int) -> Counter[str]:
    """So many files, the same for the same seed, made unless they stand there; how many of each kind."""
    made: Counter[str] = Counter()
    rng = np.random.default_rng(seed)
    exists, picture, copied = folder.exists(), b"", b""
    for index in range(files):
        if index % PER_FOLDER == 0:
            where = folder / f"day {index // PER_FOLDER:03d}"
            where.mkdir(parents=True, exist_ok=exists)
        suffix, kind = KINDS[index % len(KINDS)]
        name = (ODD_NAMES[index // 10 % len(ODD_NAMES)] if index % 10 == 7 else b"%06d") % index
        what = {13: "corrupt", 57: "duplicate"}.get(index % 100, "odd name" if index % 10 == 7 else "plain")
        made[what] += 1
        if exists:
            continue
        if what == "corrupt":
            content = (b"", b"no image %d" % index, picture[: len(picture) // 2] + b"%d" % index)[index // 100 % 3]
        elif what == "duplicate":
            content = copied
        else:
            content = picture = encoded(rng, kind, index)
            copied = copied if index % 100 else picture
        Path(os.fsdecode(os.fsencode(where) + b"/" + name + suffix.encode())).write_bytes(content)
    return made


def encoded(rng: np.random.Generator, kind: str, index: int) -> bytes:
    """A picture of 64 × 64 pixels, every one different; some JPEGs say where and when they were taken."""
    coarse = rng.integers(0, 256, (8, 8), dtype=np.uint8)
    values = np.kron(coarse, np.ones((8, 8), np.uint8))
    values[0, :4] = [index >> shift & 255 for shift in (0, 8, 16, 24)]
    image = Image.fromarray(values if kind == "TIFF" else np.repeat(values[:, :, None], 3, axis=2))
    data, options = io.BytesIO(), {}
    if kind == "JPEG" and index % 3 == 0:
        exif = Image.Exif()
        exif[ExifTags.Base.DateTime] = "2026:03:04 05:06:07"
        exif.get_ifd(ExifTags.IFD.GPSInfo).update({1: "N", 2: (48.0, index % 60, 0.0), 3: "E", 4: (11.0, index % 59, 0.0)})
        options = {"exif": exif}
    image.save(data, kind, **options)
    return data.getvalue()


def rows_of_all(out: Path, photos: Path, made: Counter[str]) -> str:
    """Fails unless there is one row per file, and as many errors and duplicates as were made; what was found."""
    found: Counter[bytes] = Counter()
    errors = duplicates = 0
    with (out / "scores.jsonl").open("rb") as lines:
        for line in lines:
            row = json.loads(line)
            found[os.fsencode(row["path"])] += 1
            errors += row["error"] is not None
            duplicates += row["duplicate_of"] is not None
    root = os.fsencode(photos)
    there = {where[len(root) + 1 :] + b"/" + name for where, _, names in os.walk(root) for name in names}
    if set(found) != there or found.total() != len(there):
        raise AssertionError(f"{len(there):,} files, but {found.total():,} rows of {len(found):,} files")
    empty = made["corrupt"] // 3
    if errors != made["corrupt"] or duplicates not in range(made["duplicate"], made["duplicate"] + empty + 2):
        raise AssertionError(f"{errors:,} errors of {made['corrupt']:,}, {duplicates:,} duplicates of {made['duplicate']:,}")
    return f"{found.total():,}, one per file; {errors:,} errors, {duplicates:,} duplicates (empty files are each other's)"
