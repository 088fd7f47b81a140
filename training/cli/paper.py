"""``hqtl-train paper``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from training.cli.common import FOLDER, JSON_OPTION, PATH, options, reported

__all__ = ["paper"]

_QUICK = {"seeds": 3, "epochs": 10, "device_epochs": 5, "device_seeds": 2, "twin_seeds": 3, "layers": (1, 2, 3)}
_PROTOCOL = (
    click.option("--seeds", type=click.IntRange(min=1), help="Trainings per box of figures 6 and 9.  [default: 10]"),
    click.option("--epochs", type=click.IntRange(min=1), help="Of figures 6 and 9 and the twins.  [default: 100]"),
    click.option("--layers", type=click.IntRange(min=1), metavar="N", help="Figure 9 and table 6 go from L = 1 to this.  [default: 6]"),
    click.option("--backbone", "backbones", multiple=True, help="Of figure 9 and table 6; repeatable, the first is that of all else.  "
                 "[default: resnet18, vgg16]"),
    click.option("--batch-size", type=click.IntRange(min=1), help="Images per optimiser step.  [default: 4]"),
    click.option("--shots", type=click.IntRange(min=1), help="On the sampled devices of table 5 and figure 7.  [default: 1024]"),
    click.option("--device-epochs", type=click.IntRange(min=1), help="Of table 5.  [default: 20]"),
    click.option("--device-seeds", type=click.IntRange(min=1), help="Trainings per device in table 5.  [default: 3]"),
    click.option("--twin-seeds", type=click.IntRange(min=1), help="Splits per data set of the comparison with the twins.  [default: 5]"),
    click.option("--group-by", metavar="none|source|REGEX", help="Grouping of tables and figures; the paper has none.  [default: none]"),
    click.option("--twin-group-by", metavar="none|source|REGEX", help="Grouping of the comparison with the twins.  [default: source]"),
    click.option("--quick", is_flag=True, help="Fewer seeds, epochs and layers where no number is given: to see everything in minutes."),
)  # fmt: skip


@click.command()
@click.option("--data", type=FOLDER, required=True, metavar="DIR", help="A folder with one folder of images per class, or one that holds "
              "several such: the experiments run on the largest, the comparison with the twins on those that can be grouped.")  # fmt: skip
@click.option("--out", type=PATH, default=Path("paper"), show_default=True, help="Folder of the study.")
@click.option("--figure", "figures", type=click.Choice(["6", "7", "9"]), multiple=True, help="Only this figure; repeatable.")
@click.option("--table", "tables", type=click.Choice(["3", "5", "6"]), multiple=True, help="Only this table; repeatable.")
@click.option("--twin", is_flag=True, help="Only the comparison of the hybrid with its classical twins on grouped splits.")
@click.option("--twin-data", type=FOLDER, multiple=True, metavar="DIR", help="Data sets of that comparison; repeatable.  [default: --data]")
@click.option("--weights", type=click.Choice(["imagenet", "none"]), default="imagenet", show_default=True, help="Weights of the backbones; "
              "random ones are taken, and named everywhere, where ImageNet's cannot be had.")  # fmt: skip
@click.option("--paper-size/--all-images", default=True, show_default=True, help="Draw 723 images with cracks and 500 without, as many as "
              "the paper has, where the folder has more.")  # fmt: skip
@options(_PROTOCOL)
@click.option("--workers", type=click.IntRange(min=1), help="Processes that train.  [default: one per core]")
@click.option("--cache-dir", type=PATH, help="Where features are cached.  [default: $HQTL_CACHE or ~/.cache/hqtl]")
@JSON_OPTION
@reported
def paper(
    data: Path,
    out: Path,
    figures: tuple[str, ...],
    tables: tuple[str, ...],
    twin: bool,
    twin_data: tuple[Path, ...],
    weights: str,
    paper_size: bool,
    workers: int | None,
    cache_dir: Path | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Repeat the experiments of Geng et al. 2023 (arXiv:2307.16723) on your images.

    Without --figure, --table or --twin all of them. The folder of the study gets data (CSV, JSON) and pictures (PNG, PDF, SVG) of
    each and index.html, which sets them beside the paper's. A killed study goes on with the same command.
    """
    protocol_options = _options(given)
    from training.features import default_cache_folder
    from training.paper.study import ITEMS, begin_study, run_study

    wanted = [f"figure{number}" for number in figures] + [f"table{number}" for number in tables] + ["twin"] * twin
    protocol = begin_study(data, out, protocol_options, weights=weights, twin_data=twin_data, paper_size=paper_size)
    result = run_study(protocol, out, wanted or list(ITEMS), cache_dir or default_cache_folder(), workers or os.cpu_count() or 1)
    if as_json:
        click.echo(json.dumps(result))
    else:
        from training.paper.screen import print_study

        print_study(result)


def _options(given: dict[str, Any]) -> dict[str, Any]:
    """Options of the protocol: what was given, and with ``--quick`` smaller numbers for the rest."""
    quick = given.pop("quick")
    chosen = {name: value for name, value in given.items() if value is not None and value != ()}
    if "layers" in chosen:
        chosen["layers"] = tuple(range(1, chosen["layers"] + 1))
    return {**(_QUICK if quick else {}), **chosen}
