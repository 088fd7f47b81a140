"""``hqtl-train data cut``, ``synth`` and ``info`` as a user runs them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from training.cli import main


def run(*words: object) -> Result:
    result = CliRunner().invoke(main, ["data", *map(str, words)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def answer(*words: object, code: int = 0) -> dict[str, Any]:
    result = run(*words, "--json")
    assert result.exit_code == code, result.stderr
    document: dict[str, Any] = json.loads(result.stdout)
    return document


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scans") / "set"
    done = run("synth", "--out", folder, "--large", 500, 400, "--count", 2, "--cracks", 3, "--crack-width", 3, 5, "--pores", 0, 5)
    assert done.exit_code == 0
    assert "2 scans of 500 × 400 pixels" in done.stdout
    return folder


def test_scans_become_a_data_set_that_info_finds_sound(scans: Path, tmp_path: Path) -> None:
    made = answer("cut", scans / "images", "--masks", scans / "masks", "--out", tmp_path / "set", "--size", 64, "--overlap", 16)
    assert set(made["patches"]) == {"crack", "no_crack"}
    assert sum(made["patches"].values()) + made["ambiguous"] == 2 * 11 * 8
    sheet = tmp_path / "sheet.png"
    found = answer("info", tmp_path / "set", "--split", "50/25/25", "--contact-sheet", sheet)
    assert found["images"] == sum(made["patches"].values())
    assert found["sizes"] == {"64×64": found["images"]}
    assert found["broken"] == {}
    with Image.open(sheet) as picture:
        assert picture.width > 1000


def test_a_file_that_is_broken_is_a_line_and_exit_code_3(scans: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("scan_000.tif", "scan_001.tif"):
        (tmp_path / "in" / name).write_bytes((scans / "images" / name).read_bytes())
    (tmp_path / "in/scan_001.tif").write_bytes(b"II*\0 and no more")
    words = ("cut", tmp_path / "in", "--masks", scans / "masks", "--size", 64, "--out")
    assert list(answer(*words, tmp_path / "a", code=3)["failed"]) == [str(tmp_path / "in/scan_001.tif")]
    shown = run(*words, tmp_path / "b")
    assert shown.exit_code == 3
    assert "left out" in shown.stderr
    assert "from 1 images" in shown.stdout
    (tmp_path / "a/crack/broken.png").write_bytes(b"text")
    looked = run("info", tmp_path / "a", "--contact-sheet", tmp_path / "sheet.png")
    assert looked.exit_code == 3
    assert "broken files: 1" in looked.stdout
    assert "crack/broken.png: not a PNG" in looked.stdout


def test_without_masks_patches_wait_to_be_sorted(scans: Path, tmp_path: Path) -> None:
    done = run("cut", scans / "images/scan_000.tif", "--out", tmp_path / "set", "--size", 100)
    assert done.exit_code == 0
    assert "20 unsorted from 1 images" in done.stdout


def test_an_image_smaller_than_a_patch_is_refused(scans: Path, tmp_path: Path) -> None:
    done = run("cut", scans / "images", "--out", tmp_path / "set", "--scale", "0.5")
    assert done.exit_code == 1
    assert "500 × 400 pixels is smaller than a tile of 448 × 448" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_masks_beside_their_images_are_pointed_out(tmp_path: Path) -> None:
    for name in ("a.png", "a_mask.png"):
        Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / name)
    done = run("cut", tmp_path, "--out", tmp_path / "out", "--size", 32)
    assert done.exit_code == 0
    assert "1 files are masks by name and are not cut" in done.stderr
    assert "4 unsorted" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--stride", 16, "--overlap", 16), "--stride or --overlap, not both"),
        (("--class-names", "one"), "takes two names"),
    ],
)
def test_contradictions_are_usage_errors(scans: Path, tmp_path: Path, words: tuple[object, ...], message: str) -> None:
    done = run("cut", scans / "images", "--out", tmp_path / "out", *words)
    assert done.exit_code == 2
    assert message in done.stderr


def test_an_overlap_as_large_as_the_patch_is_refused(scans: Path, tmp_path: Path) -> None:
    done = run("cut", scans / "images", "--out", tmp_path / "out", "--size", 64, "--overlap", 64)
    assert done.exit_code == 1
    assert "a stride of 1 to the size" in done.stderr


def test_the_look_of_patches_can_be_chosen(tmp_path: Path) -> None:
    words = ("--size", 48, "--num-images", 4, "--crack-width", 4, 6, "--contrast", 0.9, 1, "--stain", 0, 0, "--grain", 0, 0)
    assert run("synth", "--out", tmp_path / "all", "--crack-fraction", 1, "--masks", tmp_path / "masks", *words).exit_code == 0
    assert len(list((tmp_path / "all/crack").iterdir())) == 4
    with Image.open(tmp_path / "all/crack/000000.png") as image:
        assert image.size == (48, 48)
    wide = [(np.asarray(Image.open(path)) > 0).sum() for path in (tmp_path / "masks/crack").iterdir()]
    assert np.mean(wide) > 100
    refused = run("synth", "--out", tmp_path / "no", "--crack-width", 6, 4)
    assert refused.exit_code == 1
    assert "crack_width must be (low, high)" in refused.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--large", 300, 300, "--masks", "m"),
            "--masks would have no effect on scans (--large); leave it out; scans have their masks in OUT",
        ),
        (("--large", 300, 300, "--num-images", 5, "--size", 64), "--num-images, --size would have no effect on scans"),
        (("--cracks", 5), "--cracks would have no effect on patches"),
        (("--volumes", 16, "--large", 300, 300), "--large would have no effect on cubes (--volumes)"),
        (("--volumes", 16, "--size", 224), "--size would have no effect on cubes"),
    ],
)
def test_options_without_effect_are_usage_errors(tmp_path: Path, words: tuple[object, ...], message: str) -> None:
    done = run("synth", "--out", tmp_path / "a", *words)
    assert done.exit_code == 2
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_leakage_is_not_denied_where_nobody_looked_for_it(scans: Path, tmp_path: Path) -> None:
    assert run("cut", scans / "images", "--masks", scans / "masks", "--out", tmp_path / "set", "--size", 64).exit_code == 0
    words = (tmp_path / "set", "--contact-sheet", tmp_path / "sheet.png")
    plain, split = run("info", *words), run("info", *words, "--split", "50/25/25", "--group-by", "none")
    assert "leakage: not looked for; --split 70/15/15 does" in plain.stdout
    assert "different sources" not in plain.stdout
    assert "(leakage): none" in split.stdout


@pytest.mark.parametrize("names", ["bridge_001.jpg", pytest.param("", marks=pytest.mark.slow)])
def test_real_photographs_are_cut_by_their_masks(shared_data: Path, tmp_path: Path, names: str) -> None:
    folder = shared_data / "large"
    words = ("--ignore-value", 100, "--max-ratio", 1, "--clear-pixels", 5)
    made = answer("cut", folder / names, "--masks", folder, *words, "--out", tmp_path / "set")
    assert made["images"] == (1 if names else 3)
    assert made["failed"] == {}
    assert made["patches"]["no_crack"] <= made["patches"]["crack"]
    assert made["patches"]["crack"] > (10 if names else 50)
    for path in sorted((tmp_path / "set/crack").iterdir())[:5]:
        with Image.open(path) as patch:
            assert (patch.size, patch.mode) == ((224, 224), "RGB")
