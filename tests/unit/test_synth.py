"""The synthetic crack set: reproducible, independent images, masks that tell the truth."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hqtl_common.errors import ConfigError, InputError
from training.data import load_dataset
from training.synth import SynthSpec, synth_patch, write_dataset

SPEC = SynthSpec()


def patch(index: int, crack: bool, spec: SynthSpec = SPEC) -> tuple[np.ndarray, np.ndarray]:
    return synth_patch(spec, np.random.default_rng([11, index]), crack)


def files(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.png")}


def dilate(mask: np.ndarray, reach: int) -> np.ndarray:
    padded = np.pad(mask, reach)
    shifts = range(2 * reach + 1)
    height, width = mask.shape
    return np.any([padded[y : y + height, x : x + width] for y in shifts for x in shifts], axis=0)


class TestPatch:
    @pytest.mark.parametrize("size", [32, 224, 301])
    @pytest.mark.parametrize("crack", [False, True])
    def test_shapes_types_and_emptiness_of_the_mask(self, size: int, crack: bool) -> None:
        image, mask = patch(0, crack, SynthSpec(size=size))
        assert (image.shape, image.dtype) == ((size, size), np.uint8)
        assert (mask.shape, mask.dtype) == ((size, size), np.bool_)
        assert mask.any() == crack

    def test_the_same_generator_state_gives_the_same_patch_and_another_gives_another(self) -> None:
        assert np.array_equal(patch(3, True)[0], patch(3, True)[0])
        assert not np.array_equal(patch(3, True)[0], patch(4, True)[0])

    @pytest.mark.parametrize("index", range(6))
    def test_a_crack_only_darkens_and_only_at_its_mask(self, index: int) -> None:
        sound, _ = patch(index, False)
        cracked, mask = patch(index, True)
        lost = sound.astype(int) - cracked
        assert lost.min() >= 0
        assert not lost[~dilate(mask, 1)].any()
        assert lost[mask].mean() > 0.05 * sound.mean()

    @pytest.mark.parametrize("index", range(6))
    def test_cracks_are_long_thin_and_vary_in_contrast(self, index: int) -> None:
        _, mask = patch(index, True)
        rows, columns = np.nonzero(mask)
        extent = max(np.ptp(rows), np.ptp(columns))
        assert extent > 60
        assert mask.sum() / extent < 8  # two branches included
        inner = mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
        assert inner.sum() < 0.25 * mask.sum()

    def test_the_contrast_varies_along_a_crack(self) -> None:
        spec = SynthSpec(crack_width=(6, 6), contrast=(0.5, 0.5), grain=(0, 0))
        sound = patch(0, False, spec)[0].astype(float)
        cracked, mask = patch(0, True, spec)
        lost = (1 - cracked / sound)[~dilate(~mask, 1)]
        assert np.percentile(lost, 90) > 1.3 * np.percentile(lost, 10)

    def test_width_and_branches_follow_the_spec(self) -> None:
        def area(**options: object) -> float:
            spec = SynthSpec(**options)  # type: ignore[arg-type]
            return float(np.mean([patch(i, True, spec)[1].sum() for i in range(12)]))

        thin = area(crack_width=(1, 1), branch_probability=0)
        assert area(crack_width=(3, 3), branch_probability=0) > 2 * thin
        assert area(crack_width=(1, 1), branch_probability=1) > 1.2 * thin

    def test_surfaces_without_a_crack_hold_the_distractors_asked_for(self) -> None:
        plain = {"texture": (0, 0), "grain": (0, 0), "pores": (0, 0), "stain": (0, 0), "joint_probability": 0}

        def roughness(**options: object) -> float:
            spec = SynthSpec(**(plain | options))  # type: ignore[arg-type]
            return float(np.mean([patch(i, False, spec)[0].astype(float).std() for i in range(8)]))

        floor = roughness()
        for distractor in (
            {"texture": (4, 4)},
            {"grain": (8, 8)},
            {"pores": (80, 80)},
            {"stain": (0.3, 0.3)},
            {"joint_probability": 1},
        ):
            assert roughness(**distractor) > floor + 0.5, distractor

    def test_both_classes_have_the_same_brightness(self) -> None:
        means = [np.mean([patch(i, crack)[0].mean() for i in range(12)]) for crack in (False, True)]
        assert means[0] - means[1] == pytest.approx(0.5, abs=0.5)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"size": 31}, "size must be 32 to 2048"),
            ({"contrast": (0.0, 0.5)}, "contrast must be"),
            ({"contrast": (0.6, 0.5)}, "contrast must be .* got \\(0.6, 0.5\\)"),
            ({"crack_width": (0.1, 1)}, "crack_width must be"),
            ({"pores": (-1, 4)}, "pores must be"),
            ({"stain": (0, 1)}, "stain must be"),
            ({"branch_probability": 1.5}, "branch_probability must be 0 to 1; got 1.5"),
        ],
    )
    def test_a_spec_out_of_range_is_refused(self, options: dict[str, object], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            SynthSpec(**options)  # type: ignore[arg-type]


class TestWrite:
    SMALL = SynthSpec(size=48)

    def test_the_folder_is_a_data_set_with_masks_beside_it(self, tmp_path: Path) -> None:
        done: list[int] = []
        write_dataset(tmp_path / "set", 8, seed=1, spec=self.SMALL, masks=tmp_path / "masks", progress=done.append)
        assert done == list(range(1, 9))
        dataset = load_dataset(tmp_path / "set")
        assert dataset.labels == ("crack", "no_crack")
        assert [sample.label for sample in dataset.samples] == [0] * 4 + [1] * 4
        assert files(tmp_path / "set").keys() == files(tmp_path / "masks").keys()
        for sample in dataset.samples:
            with Image.open(sample.path) as image, Image.open(tmp_path / "masks" / sample.relative) as mask:
                assert (image.mode, image.size, mask.mode, mask.size) == ("L", (48, 48), "L", (48, 48))
                assert mask.getextrema() == ((0, 255) if sample.label == 0 else (0, 0))

    def test_an_image_is_the_same_in_a_longer_set_and_other_under_another_seed(self, tmp_path: Path) -> None:
        for name, count, seed in (("short", 4, 5), ("long", 7, 5), ("other", 4, 6)):
            write_dataset(tmp_path / name, count, seed, self.SMALL)
        short, long, other = (files(tmp_path / name) for name in ("short", "long", "other"))
        assert short.items() <= long.items()
        assert len(set(long.values())) == 7
        assert not set(short.values()) & set(other.values())

    @pytest.mark.parametrize(("fraction", "cracks"), [(0.0, 0), (0.29, 29), (1.0, 100)])
    def test_the_share_of_cracks_is_met(self, tmp_path: Path, fraction: float, cracks: int) -> None:
        write_dataset(tmp_path, 100, 0, SynthSpec(size=32, pores=(0, 0)), crack_fraction=fraction)
        assert sum(name.startswith("crack/") for name in files(tmp_path)) == cracks

    @pytest.mark.parametrize("request_", [{"num_images": 0}, {"seed": -1}, {"crack_fraction": 1.2}])
    def test_numbers_out_of_range_are_refused(self, tmp_path: Path, request_: dict[str, int]) -> None:
        with pytest.raises(ConfigError, match="expected at least 1 image"):
            write_dataset(**({"root": tmp_path, "num_images": 1, "seed": 0} | request_))  # type: ignore[arg-type]

    def test_masks_among_the_classes_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="read as a class"):
            write_dataset(tmp_path, 1, 0, masks=tmp_path / "masks")

    def test_images_of_another_set_are_never_mixed_in(self, tmp_path: Path) -> None:
        (tmp_path / "old.png").write_bytes(b"")
        with pytest.raises(InputError, match="new or empty folder"):
            write_dataset(tmp_path, 1, 0, self.SMALL)
        assert [path.name for path in tmp_path.iterdir()] == ["old.png"]
