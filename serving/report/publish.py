"""From the rows of a finished run to everything that people open; may be stopped at any moment and made again."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

from hqtl_common.bundle import ModelBundle
from hqtl_common.durable import replacing
from hqtl_common.errors import ConfigError, HqtlError
from serving.report.coco import CocoWriter
from serving.report.geojson import FeatureWriter, GeoWriter
from serving.report.heatmaps import MAP_EDGE, draw_map, map_name, png_of
from serving.report.judgement import Judgement, draw_misses
from serving.report.originals import Originals
from serving.report.overview import overview_of
from serving.report.page import Illustration, render_page
from serving.report.pictures import as_address, close_ups, thumbnail
from serving.report.regions import Region, find_regions
from serving.report.results import ImageResult, read_results
from serving.report.selection import Choice, Selected
from serving.report.tables import check_parquet, write_parquet
from serving.report.truth import open_truth
from serving.scoring.outcome import Outcome
from serving.scoring.rows import csv_columns, csv_values
from serving.scoring.state import State, load_state, save_state
from serving.scoring.storage import locked, output_errors, replace_file
from serving.scoring.summary import summary_of, write_summary
from serving.scoring.tile_rows import tile_columns, tile_values

__all__ = ["Outputs", "check_outputs", "publish", "publish_outcome", "wanted_outputs"]

PAGE, WORLD, PIXELS, COCO, MAPS, MISSES = "report.html", "results.geojson", "pixels.geojson", "coco.json", "maps", "misses.png"
_SCORES, _TILES = "scores.parquet", "tiles.parquet"
_TELL_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Outputs:
    """What is made.

    Args:
        report: The page, coordinates and boxes.
        maps: A map of each image that was cut into tiles.
        parquet: Tables.
        truth: Folder of masks or of class folders to compare with.
    """

    report: bool = True
    maps: bool = True
    parquet: bool = False
    truth: Path | None = None


def check_outputs(outputs: Outputs) -> None:
    """Refuse what cannot be made, before anything is scored.

    Raises:
        ConfigError: A package is missing, or the folder of the truth.
    """
    if outputs.parquet:
        check_parquet()
    if outputs.truth is not None and not outputs.truth.is_dir():
        raise ConfigError(f"expected a folder of masks or of class folders; got {str(outputs.truth)!r}")


def wanted_outputs(out: Path, given: dict[str, Any]) -> Outputs:
    """Outputs as given; what is None is as it was when they were last made, or as by default.

    Args:
        out: The output folder of a run, or of one to come.
        given: Values by the names of :class:`Outputs`.

    Raises:
        InputError: The record of the run cannot be used.
        ConfigError: See :func:`check_outputs`.
    """
    state = load_state(out)
    known = {} if state is None or state.published is None else dict(state.published)
    known |= {name: value for name, value in given.items() if value is not None}
    truth = known.get("truth")
    outputs = Outputs(**{**known, "truth": None if truth is None else Path(os.path.abspath(truth))})  # noqa: PTH100  (not resolve)
    check_outputs(outputs)
    return outputs


def publish_outcome(outcome: Outcome, bundle: Path, outputs: Outputs, **hooks: Any) -> Outcome:
    """The outcome of a run with what was made of it; as it is where the run is not complete.

    Args:
        outcome: Of the run.
        bundle: The model's folder.
        outputs: What is made.
        hooks: ``should_stop`` and ``tell`` of :func:`publish`.

    Raises:
        HqtlError: See :func:`publish`.
    """
    if not outcome.complete:
        return outcome
    summary = publish(outcome.out, ModelBundle.load(bundle), outputs, **hooks)
    return replace(outcome, complete=False) if summary is None else replace(outcome, summary=summary, made=_made(outcome.out))


def publish(
    out: Path,
    bundle: ModelBundle,
    outputs: Outputs,
    should_stop: Callable[[], bool] = lambda: False,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, Any] | None:
    """Make everything from the rows in ``out``, and give the summary; None if it was stopped, to be called again.

    What stands there already of the same rows is not made again, but truth is looked at every time.

    Args:
        out: The output folder of a complete run.
        bundle: Its model.
        outputs: What is made.
        should_stop: Asked after every image.
        tell: Told what is worth knowing, in one line.

    Raises:
        InputError: The rows cannot be read.
        ConfigError: Another process writes to the folder, or something cannot be made.
        OutputError: A file could not be written.
    """
    check_outputs(outputs)
    with locked(out):
        state = load_state(out)
        if state is None or not state.complete:
            raise ConfigError(f"{str(out)!r} holds no complete run")
        wanted: dict[str, Any] = {**asdict(outputs), "truth": None if outputs.truth is None else str(outputs.truth)}
        kept = (*((PAGE, WORLD, PIXELS, COCO) if outputs.report else ()), *((_SCORES,) if outputs.parquet else ()))
        lost = not all((out / name).exists() for name in kept)
        if state.published != wanted or lost or outputs.truth is not None:  # masks may have been mended
            made = _Work(out, state, bundle, outputs, should_stop, tell).run()
            if made is None:
                return None
            state = made.model_copy(update={"published": wanted})
            save_state(out, state)
        summary = summary_of(state, bundle.labels)
        write_summary(out, summary)
        return summary


class _StoppedError(Exception):
    """The caller asked to stop."""


@dataclass(slots=True)
class _Work:
    out: Path
    state: State
    bundle: ModelBundle
    outputs: Outputs
    should_stop: Callable[[], bool]
    tell: Callable[[str], None]

    def run(self) -> State | None:
        """The state with the truth's figures; None if it was stopped."""
        try:
            folder = Path(self.state.folder)
            with Originals(folder) as originals, Originals(self.outputs.truth or folder) as masks:
                return self._run(originals, masks)
        except _StoppedError:
            return None

    def _run(self, originals: Originals, masks: Originals) -> State:
        positive = self.bundle.manifest.positive_label
        folder, truth = Path(self.state.folder), self.outputs.truth
        judgement = None if truth is None else Judgement(open_truth(truth, folder, self.bundle.labels, positive, masks), positive)
        selected = Selected(positive)
        told = time.monotonic()
        with ExitStack() as stack:
            documents = self._documents(stack, originals, positive) if self.outputs.report else []
            for image in read_results(self.out):
                if self.should_stop():
                    raise _StoppedError  # what is half written goes away
                if time.monotonic() - told >= _TELL_SECONDS:
                    told = time.monotonic()
                    self.tell(f"report and maps: {image.number:,} of {self.state.position.rows:,} images")
                regions = find_regions(image.grid, image.marked(positive)) if image.tiles else []
                map_file = self._map(image, regions, originals, positive)
                selected.add(image, map_file)
                if judgement is not None:
                    judgement.add(image)
                for document in documents:
                    document.add(image, regions, map_file)
        figures = None if judgement is None or truth is None else json.loads(json.dumps(judgement.to_dict(truth), sort_keys=True))
        state = self.state.model_copy(update={"truth": figures})
        if self.outputs.parquet:
            self._tables()
        misses = None if judgement is None else self._misses(judgement, originals)
        if self.outputs.report:
            self._page(state, selected, originals, misses)
        return state

    def _documents(self, stack: ExitStack, originals: Originals, positive: str) -> list[GeoWriter | CocoWriter]:
        produced = {"bundle_sha256": self.state.bundle_sha256, "options": self.state.options.model_dump(), "versions": self.state.versions}
        coordinates = "x to the right and y down in pixels of the upright image; no position on the ground"
        world = FeatureWriter(stack.enter_context(_replacing(self.out / WORLD)), {"hqtl": produced})
        pixels = FeatureWriter(stack.enter_context(_replacing(self.out / PIXELS)), {"hqtl": produced, "hqtl_coordinates": coordinates})
        spare = stack.enter_context(_scratch(self.out / f".{COCO}.images.partial"))
        coco = CocoWriter(stack.enter_context(_replacing(self.out / COCO)), spare, positive, produced)
        for document in (world, pixels, coco):
            stack.callback(document.finish)
        return [GeoWriter(originals, world, pixels, positive), coco]

    def _map(self, image: ImageResult, regions: list[Region], originals: Originals, positive: str) -> str | None:
        """The file of the image's map, drawn unless it stands there from an earlier time; None for a duplicate or a single tile."""
        if not self.outputs.maps or len(image.tiles) < 2:
            return None
        name = f"{MAPS}/{map_name(image.number, image.name)}"
        path = self.out / name
        if path.exists():
            return name
        try:
            with originals.open(image.row) as raster:
                picture = overview_of(raster, MAP_EDGE)
        except HqtlError as error:
            self.tell(f"no map of {image.name!r}: {error}")
            return None
        threshold = self.state.options.threshold
        drawn = draw_map(picture, image.grid, image.scores(positive), regions, positive, threshold)
        with output_errors(path):
            path.parent.mkdir(exist_ok=True)
        replace_file(path, png_of(drawn))
        return name

    def _misses(self, judgement: Judgement, originals: Originals) -> str | None:
        picture = draw_misses(judgement, originals)
        if picture is None:
            (self.out / MISSES).unlink(missing_ok=True)  # of an earlier truth
            return None
        replace_file(self.out / MISSES, png_of(picture))
        return as_address(picture)

    def _page(self, state: State, selected: Selected, originals: Originals, misses: str | None) -> None:
        page = render_page(
            summary_of(state, self.bundle.labels),
            self.bundle,
            selected,
            lambda choice: self._illustrated(choice, originals),
            misses,
        )
        replace_file(self.out / PAGE, page.encode("utf-8", "backslashreplace"))

    def _illustrated(self, choice: Choice, originals: Originals) -> Illustration:
        map_path = None if choice.map_file is None else self.out / choice.map_file
        tiles = choice.row["tiles"] or {"count": 0}
        close = close_ups(originals.open(choice.row), choice.places, tiles["size"]) if tiles["count"] > 1 else []
        return Illustration(thumbnail(originals.open(choice.row), map_path), close)

    def _tables(self) -> None:
        labels, head = self.bundle.labels, self.bundle.head
        columns, tile = csv_columns(labels, head), tile_columns(labels, head)
        images = (dict(zip(columns, csv_values(image.row, labels, head), strict=True)) for image in read_results(self.out))
        self._table(_SCORES, images, columns)
        if self.state.options.tiles:
            tiles = (row for image in read_results(self.out) for row in image.tiles)
            self._table(_TILES, (dict(zip(tile, tile_values(row, labels, head), strict=True)) for row in tiles), tile)

    def _table(self, name: str, rows: Iterator[dict[str, Any]], columns: list[str]) -> None:
        with output_errors(self.out / name), replacing(self.out / name) as staging:
            write_parquet(staging, rows, columns)


def _made(out: Path) -> tuple[str, ...]:
    """Names of what stands in the output folder beside the rows, what people open first first."""
    return tuple(name for name in (PAGE, MAPS, WORLD, PIXELS, COCO, MISSES, _SCORES, _TILES) if (out / name).exists())


@contextmanager
def _replacing(path: Path) -> Iterator[IO[str]]:
    """A file that takes its place when the block ends well."""
    with output_errors(path), replacing(path) as staging, staging.open("w+", encoding="ascii") as file:
        yield file


@contextmanager
def _scratch(path: Path) -> Iterator[IO[str]]:
    """A file that goes away."""
    with output_errors(path):
        try:
            with path.open("w+", encoding="ascii") as file:
                yield file
        finally:
            path.unlink(missing_ok=True)
