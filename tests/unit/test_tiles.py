"""Tile grids cover every pixel; maps of tiles are weighted means of them."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hqtl_common.errors import ConfigError, ShapeError
from hqtl_common.rasters import open_raster
from hqtl_common.tiles import Edges, TileGrid, blend_map, read_tile, tile_grid

lengths = st.integers(1, 200)
sizes = st.integers(1, 64).flatmap(lambda size: st.tuples(st.just(size), st.integers(1, size)))


def coverage(grid: TileGrid) -> np.ndarray:
    """How many tiles lie on each pixel."""
    count = np.zeros((grid.height, grid.width), dtype=int)
    for x, y in grid:
        count[y : y + grid.size, x : x + grid.size] += 1
    return count


class TestGrid:
    @given(lengths, lengths, sizes, st.sampled_from(["shift", "pad"]))
    def test_every_pixel_is_covered_and_no_tile_is_needless(self, width: int, height: int, size: tuple[int, int], edges: Edges) -> None:
        if edges == "shift":
            width, height = max(width, size[0]), max(height, size[0])
        grid = tile_grid(width, height, *size, edges)
        assert coverage(grid).min() >= 1
        assert len(list(grid)) == len(grid) == len(set(grid)) == grid.shape[0] * grid.shape[1]
        for starts, length in ((grid.xs, width), (grid.ys, height)):
            assert starts[0] == 0
            assert all(0 < after - before <= size[1] for before, after in pairwise(starts))
            if edges == "shift":
                assert starts[-1] + size[0] == length
            else:
                assert starts[-1] == (len(starts) - 1) * size[1]
            assert all(start + size[0] < length for start in starts[:-1])

    def test_the_known_grid_of_a_scan(self) -> None:
        assert tile_grid(16_000, 16_000, edges="pad").shape == (72, 72)
        assert tile_grid(500, 224, 224, 112).xs == (0, 112, 224, 276)
        assert tile_grid(500, 224, 224, 112, "pad").xs == (0, 112, 224, 336)
        assert list(tile_grid(448, 448)) == [(0, 0), (224, 0), (0, 224), (224, 224)]

    @pytest.mark.parametrize("stride", [0, 225])
    def test_a_stride_that_leaves_gaps_is_refused(self, stride: int) -> None:
        with pytest.raises(ConfigError, match=f"stride must be 1 to .* 224.* got {stride}"):
            tile_grid(500, 500, 224, stride)

    def test_an_image_smaller_than_a_tile_is_padded_or_refused(self) -> None:
        assert list(tile_grid(100, 50, edges="pad")) == [(0, 0)]
        with pytest.raises(ShapeError, match="100 × 500 pixels is smaller"):
            tile_grid(100, 500)


class TestReading:
    @pytest.mark.parametrize("colour", [False, True])
    def test_edges_are_repeated_outside_of_the_image(self, tmp_path: Path, colour: bool) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3) if colour else (20, 30), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "a.png")
        with open_raster(tmp_path / "a.png") as raster:
            assert np.array_equal(read_tile(raster, 3, 2, 16), pixels[2:18, 3:19])
            tile = read_tile(raster, 20, 10, 16)
            with pytest.raises(ShapeError):
                read_tile(raster, 30, 0, 16)
        assert np.array_equal(tile[:10, :10], pixels[10:, 20:])
        assert (tile[10:, :10] == pixels[19, 20:]).all()
        assert (tile[:, 10:] == tile[:, 9:10]).all()


class TestMap:
    @given(lengths, lengths, sizes, st.integers(1, 9), st.integers(0, 1000))
    def test_a_map_keeps_a_constant_and_stays_between_the_extremes(
        self, width: int, height: int, size: tuple[int, int], cell: int, seed: int
    ) -> None:
        grid = tile_grid(width, height, *size, "pad")
        values = np.random.default_rng(seed).random(len(grid))
        blended = blend_map(grid, values, cell)
        assert blended.shape == (-(-height // cell), -(-width // cell))
        assert blended.min() >= values.min() - 1e-6
        assert blended.max() <= values.max() + 1e-6
        assert blend_map(grid, np.full(len(grid), 0.25), cell) == pytest.approx(0.25)

    def test_it_is_the_weighted_mean_of_the_tiles_above_each_pixel(self) -> None:
        grid = tile_grid(37, 29, 16, 5, "pad")
        values = np.random.default_rng(1).random(grid.shape)
        centre = np.arange(16) + 0.5
        one = 1 - np.abs(centre - 8) / 8 + 1e-6
        total, weight = np.zeros((60, 60)), np.zeros((60, 60))
        for (x, y), value in zip(grid, values.ravel(), strict=True):
            total[y : y + 16, x : x + 16] += value * np.outer(one, one)
            weight[y : y + 16, x : x + 16] += np.outer(one, one)
        assert blend_map(grid, values, cell=1) == pytest.approx(total[:29, :37] / weight[:29, :37], rel=1e-5)

    def test_without_overlap_each_tile_keeps_its_value(self) -> None:
        values = np.array([[0.1, 0.9], [0.4, 0.2]])
        blended = blend_map(tile_grid(32, 32, 16), values, cell=4)
        assert blended == pytest.approx(np.kron(values, np.ones((4, 4))))

    def test_a_cell_on_the_border_of_two_tiles_is_of_both(self) -> None:
        blended = blend_map(tile_grid(200, 100, 100), np.array([0.2, 0.4]), cell=8)[0]
        assert blended[11:14] == pytest.approx([0.2, 0.3, 0.4])  # the middle of the twelfth is pixel 100

    def test_tiles_without_a_value_are_left_to_their_neighbours(self) -> None:
        values = np.array([0.3, np.nan, np.nan, 0.7])
        blended = blend_map(tile_grid(40, 16, 16, 8), values, cell=8)
        assert blended.shape == (2, 5)
        assert blended[0] == pytest.approx([0.3, 0.3, np.nan, 0.7, 0.7], nan_ok=True)

    def test_a_missing_value_is_refused(self) -> None:
        with pytest.raises(ShapeError, match="each of 4 tiles; got 3"):
            blend_map(tile_grid(32, 32, 16), np.zeros(3))
