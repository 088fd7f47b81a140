"""Whole synthetic scans: strips that fit together, masks that tell the truth, constant memory."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from hqtl_common.errors import ConfigError
from hqtl_common.rasters import open_raster
from training.synth import SynthSpec
from training.synth_large import LargeScan, write_scans

WIDE = SynthSpec(crack_width=(4, 6), contrast=(0.6, 0.8), grain=(0, 0))


def image_and_mask(folder: Path, name: str = "scan_000.tif") -> tuple[np.ndarray, np.ndarray]:
    return tifffile.imread(folder / "images" / name), tifffile.imread(folder / "masks" / name)


def test_strips_fit_together_whatever_their_height() -> None:
    scan = LargeScan(300, 400, 3, 0)
    image, mask = scan.strip(0, 400), scan.mask_strip(0, 400)
    for rows in (75, 333):
        parts = [(top, min(rows, 400 - top)) for top in range(0, 400, rows)]
        difference = np.concatenate([scan.strip(*part) for part in parts]).astype(int) - image
        assert np.abs(difference).max() <= 1  # rounding
        assert (difference != 0).mean() < 1e-3
        assert np.array_equal(np.concatenate([scan.mask_strip(*part) for part in parts]), mask)


def test_files_hold_the_scan_and_its_cracks(tmp_path: Path) -> None:
    rows: list[int] = []
    write_scans(tmp_path / "set", 600, 700, 2, 5, WIDE, num_cracks=3, progress=rows.append)
    assert sum(rows) == 2 * 2 * 700
    assert sorted(path.relative_to(tmp_path / "set").as_posix() for path in tmp_path.rglob("*.*")) == [
        f"{folder}/scan_{number:03d}.tif" for folder in ("images", "masks") for number in (0, 1)
    ]
    image, mask = image_and_mask(tmp_path / "set")
    assert image.shape == mask.shape == (700, 600)
    assert image.dtype == mask.dtype == np.uint8
    assert set(np.unique(mask)) == {0, 255}
    assert not np.array_equal(image, image_and_mask(tmp_path / "set", "scan_001.tif")[0])
    with open_raster(tmp_path / "set/masks/scan_000.tif") as raster:
        assert np.array_equal(raster.read(100, 200, 300, 400), mask[200:600, 100:400])


def test_cracks_darken_and_only_where_the_mask_says(tmp_path: Path) -> None:
    cracked, sound = LargeScan(600, 700, 1, 0, WIDE, 3), LargeScan(600, 700, 1, 0, WIDE, 0)
    lost = sound.strip(0, 700).astype(int) - cracked.strip(0, 700)
    mask = cracked.mask_strip(0, 700) > 0
    assert lost.min() >= 0
    assert lost[mask].mean() > 40
    padded = np.pad(mask, 1)
    near = np.any([padded[y : y + 700, x : x + 600] for y in range(3) for x in range(3)], axis=0)
    assert not lost[~near].any()
    assert not sound.mask_strip(0, 700).any()


def test_a_scan_depends_on_its_seed_and_number_only() -> None:
    one = LargeScan(300, 300, 7, 1).strip(0, 300)
    assert np.array_equal(one, LargeScan(300, 300, 7, 1).strip(0, 300))
    assert not np.array_equal(one, LargeScan(300, 300, 7, 0).strip(0, 300))
    assert not np.array_equal(one, LargeScan(300, 300, 8, 1).strip(0, 300))


def test_pores_stains_and_grain_follow_the_spec() -> None:
    plain = {"texture": (0, 0), "grain": (0, 0), "pores": (0, 0), "stain": (0, 0)}

    def roughness(**options: tuple[float, float]) -> float:
        spec = SynthSpec(**(plain | options))  # type: ignore[arg-type]
        return float(np.mean([LargeScan(300, 300, 0, index, spec, 0).strip(0, 300).astype(float).std() for index in range(4)]))

    floor = roughness()
    for distractor in ({"texture": (4, 4)}, {"grain": (8, 8)}, {"pores": (200, 200)}, {"stain": (0.5, 0.5)}):
        assert roughness(**distractor) > floor + 0.5, distractor


@pytest.mark.parametrize("numbers", [(255, 300, 1, 0), (300, 100_001, 1, 0), (300, 300, 0, 0), (300, 300, 1, -1)])
def test_numbers_out_of_range_are_refused(tmp_path: Path, numbers: tuple[int, int, int, int]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        write_scans(tmp_path / "set", *numbers)


def test_images_of_another_set_are_never_mixed_in(tmp_path: Path) -> None:
    (tmp_path / "old.png").write_bytes(b"")
    with pytest.raises(ConfigError, match="new or empty folder"):
        write_scans(tmp_path, 300, 300, 1, 0)


@pytest.mark.slow
def test_a_scan_of_16000_by_16000_is_made_and_cut_below_a_gigabyte(tmp_path: Path) -> None:
    code = (
        "import re, sys; from training.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print(int(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1]) // 1024)"
    )

    def peak(*arguments: str) -> int:
        done = subprocess.run([sys.executable, "-c", code, "data", *arguments], capture_output=True, text=True, check=True)
        return int(done.stdout.split()[-1])

    made, patches = str(tmp_path / "set"), str(tmp_path / "patches")
    assert peak("synth", "--out", made, "--large", "16000", "16000") < 900
    assert peak("cut", f"{made}/images", "--masks", f"{made}/masks", "--out", patches, "--max-ratio", "1") < 400
