"""Pictures: whole PNG files of a sensible size, the same bytes for the same numbers, whatever the classes are called."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from training.plots import plot_confusion, plot_curves, plot_curves_together, plot_gallery


def metrics(epochs: int) -> list[dict[str, Any]]:
    def line(scale: float, e: int) -> dict[str, Any]:
        return {"train_loss": 0.7 * scale / e, "val_loss": 0.8 * scale / e, "val_accuracy": 1 - 0.5 * scale / e}

    return [{"epoch": e, **line(1, e), "twins": {"bottleneck": line(0.9, e), "linear": line(0.7, e)}} for e in range(1, epochs + 1)]


def picture(path: Path) -> np.ndarray:
    """Decoded pixels; raises where the file is no whole PNG."""
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    with Image.open(path) as image:
        image.load()
        assert image.info.get("Software") is None, "the version of the plotting library would change the bytes"
        return np.asarray(image.convert("RGB"))


def has_colour(pixels: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool((np.abs(pixels.astype(int) - colour).sum(axis=2) < 12).any())


BLUE, ORANGE, GREEN, PINK = (0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167)


@pytest.mark.parametrize("epochs", [2, 100])
def test_curves(tmp_path: Path, epochs: int) -> None:
    plot_curves(metrics(epochs), epochs, tmp_path / "curves.png")
    pixels = picture(tmp_path / "curves.png")
    assert pixels.shape == (540, 1350, 3)
    assert has_colour(pixels[:, :675], BLUE)
    assert has_colour(pixels[:, :675], ORANGE)
    assert has_colour(pixels[:, 675:], ORANGE)
    for colour in (GREEN, PINK):
        assert has_colour(pixels[:, :675], colour)
        assert has_colour(pixels[:, 675:], colour)


def test_curves_of_several_runs_of_different_length(tmp_path: Path) -> None:
    """The band of the model spans the runs, wherever they end."""
    plot_curves_together([metrics(12), metrics(5), metrics(8)], tmp_path / "several.png")
    worse = [{**line, "val_accuracy": line["val_accuracy"] - 0.2} for line in metrics(12)]
    plot_curves_together([metrics(12), worse, metrics(8)], tmp_path / "wider.png")
    several, wider = picture(tmp_path / "several.png"), picture(tmp_path / "wider.png")
    for pixels in (several, wider):
        assert pixels.shape == (540, 1350, 3)
        for colour in (BLUE, ORANGE, GREEN, PINK):
            assert has_colour(pixels, colour)
    band = (250, 223, 204)  # orange at 15 % on white
    assert sum((np.abs(wider[:, 675:].astype(int) - band).sum(axis=2) < 30).flat) > 5000


def test_curves_of_a_single_epoch_show_it(tmp_path: Path) -> None:
    """A line needs two points; one epoch must be seen all the same (the legend shows the colours once)."""
    plot_curves(metrics(1), 1, tmp_path / "one.png")
    plot_curves([{**metrics(1)[0], "val_accuracy": 0.25}], 1, tmp_path / "other.png")
    left, right = picture(tmp_path / "one.png"), picture(tmp_path / "other.png")
    axes = (slice(100, 300), slice(790, 1300))
    assert has_colour(left[axes], ORANGE)
    assert left.shape == right.shape


def test_confusion_shows_counts_and_shares(tmp_path: Path) -> None:
    plot_confusion([[9, 1], [0, 10]], ["crack", "no_crack"], "test split", tmp_path / "a.png")
    plot_confusion([[8, 2], [0, 10]], ["crack", "no_crack"], "test split", tmp_path / "b.png")
    first, second = picture(tmp_path / "a.png"), picture(tmp_path / "b.png")
    assert 300 < first.shape[0] < 1200
    assert first.shape == second.shape
    assert (first != second).any()


def test_confusion_grows_with_the_classes(tmp_path: Path) -> None:
    heights = []
    for count in (2, 5, 10):
        plot_confusion(np.eye(count, dtype=int).tolist(), [f"class {k}" for k in range(count)], "test split", tmp_path / "c.png")
        heights.append(picture(tmp_path / "c.png").shape[0])
    assert heights == sorted(set(heights))


def test_class_without_images_does_not_divide_by_zero(tmp_path: Path) -> None:
    plot_confusion([[3, 0], [0, 0]], ["a", "b"], "test split", tmp_path / "c.png")
    picture(tmp_path / "c.png")


@pytest.mark.parametrize("label", ["$_$", r"\frac{", "$5", "two\nlines", "<b>&amp;", "long " * 40])
def test_any_folder_name_can_be_drawn(tmp_path: Path, label: str) -> None:
    """Names of folders are not formulas; a picture must never cost a finished training."""
    plot_confusion([[1, 2], [3, 4]], [label, "b"], label, tmp_path / "c.png")
    picture(tmp_path / "c.png")
    Image.new("L", (20, 20)).save(tmp_path / "grey.png")
    plot_gallery([(tmp_path / "grey.png", label, 0.5)], tmp_path / "g.png")
    picture(tmp_path / "g.png")


@pytest.mark.filterwarnings("ignore:Glyph .* missing from font")
def test_letters_that_the_font_lacks_are_drawn_as_boxes(tmp_path: Path) -> None:
    plot_confusion([[1, 2], [3, 4]], ["ひび", "無"], "test split", tmp_path / "c.png")
    picture(tmp_path / "c.png")


def test_gallery(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    items = []
    for index in range(8):
        Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(tmp_path / f"{index}.png")
        items.append((tmp_path / f"{index}.png", "crack", 0.9))
    Image.fromarray(np.arange(0, 65536, 114, dtype=np.uint16).reshape(23, 25)).save(tmp_path / "deep.png")
    items.append((tmp_path / "deep.png", "crack", 0.7))
    plot_gallery(items, tmp_path / "gallery.png", columns=3)
    plot_gallery(items[:2], tmp_path / "row.png", columns=3)
    pixels = picture(tmp_path / "gallery.png")
    assert abs(pixels.shape[0] - 3 * picture(tmp_path / "row.png").shape[0]) < 3
    deep = pixels[-200:-20, -200:-20].astype(int)
    assert (np.ptp(deep, axis=2) < 12).all(), "a grey photograph must be shown grey"
    assert np.ptp(deep) > 100, "and not black"


@pytest.mark.parametrize(
    "draw",
    [
        lambda path: plot_curves(metrics(7), 3, path),
        lambda path: plot_confusion([[9, 1], [0, 10]], ["crack", "no_crack"], "test split", path),
    ],
)
def test_same_numbers_give_the_same_bytes(tmp_path: Path, draw: Callable[[Path], None]) -> None:
    for name in ("first.png", "second.png"):
        draw(tmp_path / name)
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()
