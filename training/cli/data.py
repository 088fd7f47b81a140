"""``hqtl-train data …`` and ``quickstart``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from training.cli.common import FOLDER, JSON_OPTION, PARTLY, PATH, reported

__all__ = ["data", "quickstart"]

_LOOK = {"crack_width", "contrast", "pores", "stain", "grain"}
_SYNTH_NAMES = {"patches": "patches", "large": "scans (--large)", "volumes": "cubes (--volumes)"}
_SYNTH_OPTIONS = {
    "patches": {"out", "seed", "num_images", "masks", "crack_fraction", "size", *_LOOK},
    "large": {"out", "seed", "large", "count", "cracks", *_LOOK},
    "volumes": {"out", "seed", "volumes", "num_images"},
}


@click.group()
def data() -> None:
    """Make data sets and look into them."""


@data.command()
@click.argument("images", type=PATH, nargs=-1, required=True)
@click.option("--masks", type=PATH, metavar="DIR", help="Masks of the crack pixels, NAME.png or NAME_mask.png; or one file for one image.")
@click.option("--out", type=PATH, required=True, metavar="DIR", help="Folder to make.")
@click.option("--size", type=click.IntRange(8, 4096), default=224, show_default=True, help="Edge length of a patch in pixels.")
@click.option("--stride", type=click.IntRange(min=1), metavar="N", help="Distance of neighbouring patches.  [default: size − overlap]")
@click.option("--overlap", type=click.IntRange(min=0), metavar="N", help="Pixels that neighbouring patches share.  [default: 0]")
@click.option("--scale", type=float, default=1.0, show_default=True, help="Enlarge (above 1) or reduce (below 1) the image by this factor.")
@click.option("--crack-pixels", type=click.IntRange(min=1), default=80, show_default=True, help="A patch with so many shows a crack.")
@click.option("--clear-pixels", type=click.IntRange(min=0), default=0, show_default=True, help="A patch with at most so many shows none.")
@click.option("--mask-threshold", type=click.IntRange(1, 255), default=128, show_default=True, help="Mask values from here up are crack.")
@click.option("--ignore-value", type=click.IntRange(0, 255), metavar="N", help="Mask value that is neither crack nor clear.")
@click.option("--class-names", default="crack,no_crack", show_default=True, help="Folders of patches with and without a crack.")
@click.option("--max-ratio", type=float, metavar="R", help="Keep at most R patches without a crack per patch with one.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the choice that --max-ratio makes.")
@click.option("--max-pixels", type=click.IntRange(min=1), default=1 << 30, show_default=True, help="Refuse larger images.")
@JSON_OPTION
@reported
def cut(
    images: tuple[Path, ...],
    masks: Path | None,
    out: Path,
    stride: int | None,
    overlap: int | None,
    class_names: str,
    crack_pixels: int,
    clear_pixels: int,
    mask_threshold: int,
    ignore_value: int | None,
    as_json: bool,
    size: int,
    **given: Any,
) -> int:
    """Cut large IMAGES (files or folders) into labelled patches and a table of where each came from.

    With masks a patch is labelled by its crack pixels; one between --clear-pixels and --crack-pixels is dropped. Without
    masks all patches lie in unsorted/, to be moved into class folders by hand; the table finds them there too.
    """
    if stride is not None and overlap is not None:
        raise click.UsageError("give --stride or --overlap, not both")
    names = class_names.split(",")
    if len(names) != 2:
        raise click.UsageError(f"--class-names takes two names, like crack,no_crack; got {class_names!r}")
    from training.console import progress_bar, warn
    from training.cutting import CutSpec
    from training.cutting import cut as cut_scans
    from training.labelling import LabelRule
    from training.scans import find_scans

    rule = LabelRule(crack_pixels, clear_pixels, mask_threshold, ignore_value)
    spec = CutSpec(size, size - overlap if overlap else stride, rule=rule, class_names=(names[0], names[1]), **given)
    scans, set_aside = find_scans(images, masks)
    if set_aside and masks is None:
        warn(f"{len(set_aside)} files are masks by name and are not cut ({set_aside[0].name}, …); label by them with --masks")
    with progress_bar("images", len(scans), "images") as advance:
        report = cut_scans(scans, out, spec, labelled=masks is not None, progress=advance)
    for message in (*report.warnings, *(f"left out {path}: {message}" for path, message in report.failed.items())):
        warn(message)
    if as_json:
        click.echo(json.dumps(report.to_dict()))
    else:
        counts = ", ".join(f"{count} {name}" for name, count in report.patches.items())
        click.echo(f"{out}: {counts} from {report.images} images; dropped {report.ambiguous} ambiguous, {report.surplus} surplus")
    return PARTLY if report.failed else 0


@data.command()
@click.option(
    "--out", type=PATH, required=True, metavar="DIR", help="Folder to make: crack/ and no_crack/, with --large images/ and masks/."
)
@click.option("--num-images", type=click.IntRange(min=2), default=600, show_default=True, help="Patches in all.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="The same seed gives the same images.")
@click.option("--masks", type=PATH, metavar="DIR", help="Also write the crack pixels of the patches as PNG masks there.")
@click.option("--crack-fraction", type=click.FloatRange(0, 1), default=0.5, show_default=True, help="Share of patches with a crack.")
@click.option("--size", type=click.IntRange(32, 2048), default=224, show_default=True, help="Edge length of a patch in pixels.")
@click.option("--crack-width", type=float, nargs=2, metavar="LOW HIGH", help="Width of cracks in pixels.  [default: 1 2]")
@click.option("--contrast", type=float, nargs=2, metavar="LOW HIGH", help="Share of light that cracks swallow.  [default: 0.2 0.55]")
@click.option("--pores", type=int, nargs=2, metavar="LOW HIGH", help="Pores per 224 × 224 pixels.  [default: 5 60]")
@click.option("--stain", type=float, nargs=2, metavar="LOW HIGH", help="Share of light that stains swallow.  [default: 0 0.15]")
@click.option("--grain", type=float, nargs=2, metavar="LOW HIGH", help="Noise of the sensor in grey levels.  [default: 1 4]")
@click.option("--volumes", type=click.IntRange(8, 256), metavar="EDGE", help="Cubes of EDGE voxels (.npy) instead of patches.")
@click.option("--large", type=click.IntRange(256, 100_000), nargs=2, metavar="W H", help="Whole scans of W × H pixels instead of patches.")
@click.option("--count", type=click.IntRange(min=1), default=1, show_default=True, help="Number of scans, with --large.")
@click.option("--cracks", type=click.IntRange(min=0), default=5, show_default=True, help="Cracks per scan, with --large.")
@reported
def synth(
    out: Path,
    num_images: int,
    seed: int,
    masks: Path | None,
    crack_fraction: float,
    volumes: int | None,
    large: tuple[int, int] | None,
    count: int,
    cracks: int,
    **look: Any,
) -> None:
    """Generate concrete with pores, stains and thin cracks: labelled patches, whole scans with masks, or cubes."""
    _check_synth_options("volumes" if volumes else "large" if large else "patches")
    from training.console import progress_bar

    if volumes is not None:
        from training.synth_volumes import SynthVolumeSpec, write_volumes

        with progress_bar("volumes", num_images, "volumes") as advance:
            write_volumes(out, num_images, seed, spec=SynthVolumeSpec(edge=volumes), progress=advance)
        click.echo(f"{out}: {num_images} volumes of {volumes} × {volumes} × {volumes} voxels")
        return
    from training.synth import SynthSpec, write_dataset

    spec = SynthSpec(**{name: value for name, value in look.items() if value is not None})
    if large is None:
        with progress_bar("patches", num_images, "images") as advance:
            write_dataset(out, num_images, seed, spec, crack_fraction, masks, lambda done: advance(1))
        click.echo(f"{out}: {num_images} patches")
        return
    from training.synth_large import write_scans

    width, height = large
    with progress_bar("scans", 2 * height * count, "rows") as advance:
        write_scans(out, width, height, count, seed, spec, cracks, advance)
    click.echo(f"{out}: {count} scans of {width} × {height} pixels in images/, their cracks in masks/")


def _check_synth_options(kind: str) -> None:
    """Refuses what was given and would have no effect.

    Raises:
        click.UsageError: Such an option.
    """
    context = click.get_current_context()
    foreign = {name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE} - _SYNTH_OPTIONS[kind]
    if foreign:
        names = ", ".join(sorted("--" + name.replace("_", "-") for name in foreign))
        where = "; scans have their masks in OUT/masks" if kind == "large" and "masks" in foreign else ""
        raise click.UsageError(f"{names} would have no effect on {_SYNTH_NAMES[kind]}; leave it out{where}")


@data.command()
@click.argument("folder", type=FOLDER, metavar="DIR")
@click.option("--split", metavar="TRAIN/VAL/TEST", help="Look for leakage across the split that fit would make with these shares.")
@click.option("--group-by", default="none", show_default=True, metavar="none|source|REGEX", help="As in fit.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the split and of the contact sheet.")
@click.option(
    "--contact-sheet",
    type=PATH,
    default=Path("contact_sheet.png"),
    show_default=True,
    metavar="FILE",
    help="Picture of some of each class.",
)
@JSON_OPTION
@reported
def info(folder: Path, split: str | None, group_by: str, seed: int, contact_sheet: Path, as_json: bool) -> int:
    """Count classes, sizes and bit depths of DIR; find broken files, duplicates and leakage between splits."""
    from training.console import progress_bar
    from training.contact_sheet import draw_contact_sheet
    from training.data import load_dataset
    from training.data_info import survey

    with progress_bar("images", len(load_dataset(folder).samples), "images") as advance:
        found = survey(folder, split, group_by, seed, advance)
    draw_contact_sheet(found.dataset, contact_sheet, found.broken, seed=seed)
    if as_json:
        click.echo(json.dumps({**found.to_dict(), "contact_sheet": str(contact_sheet)}))
    else:
        from training.survey_tables import print_survey

        print_survey(found)
        click.echo(contact_sheet)
    return PARTLY if found.broken else 0


@click.command()
@click.option(
    "--out", type=PATH, default=Path("quickstart-out"), show_default=True, metavar="DIR", help="Folder made anew for all results."
)
@reported
def quickstart(out: Path) -> int:
    """Make photographs, train, export, verify, score a folder, serve, ask over HTTP: the main job end to end."""
    from training.quickstart import run_quickstart

    return 0 if run_quickstart(out) else 1
