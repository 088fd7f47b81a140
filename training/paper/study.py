"""The whole study: images, weights, features, trainings, then data, picture and section of every item, and the page."""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from hqtl_common.durable import replace_file, replacing
from hqtl_common.errors import ConfigError
from training.backbones import load_backbone
from training.config import FitConfig
from training.console import say, warn
from training.data import group_keys, load_dataset
from training.paper import figure6, figure7, figure9, table3, table5, table6, twin
from training.paper.environment import environment
from training.paper.images import find_data_sets, paper_subset
from training.paper.outcomes import Outcome, read_outcome
from training.paper.page import write_page
from training.paper.protocol import Part, Protocol, TwinData
from training.paper.sections import Section
from training.paper.style import FORMATS
from training.paper.work import do_parts, part_record
from training.prepare import compute_features, pick_device, read_source

__all__ = ["ITEMS", "begin_study", "run_study"]

ITEMS: dict[str, ModuleType] = {item.NAME: item for item in (table3, figure6, figure7, table5, figure9, table6, twin)}


def begin_study(
    data: Path, out: Path, options: Mapping[str, Any], *, weights: str, twin_data: Sequence[Path], paper_size: bool
) -> Protocol:
    """Choose images and weights, and write the protocol into the folder of the study; or check that it is that of the study there.

    Args:
        data: A data set, or a folder that holds several: the experiments then run on the largest, the comparison with the twins on
            those whose patches can be grouped.
        out: Folder of the study.
        options: Of :class:`training.paper.protocol.Protocol`, without data and weights.
        weights: ``imagenet`` or ``none``; where ImageNet's cannot be had, random ones are taken and named.
        twin_data: Data sets for the comparison with the twins instead.
        paper_size: Draw as many images as the paper has where there are more.

    Raises:
        ConfigError: Options out of range, a folder that holds something else or a study with other options.
        InputError: No data set.
    """
    data, twin_data = data.resolve(), [folder.resolve() for folder in twin_data]  # the same study from any folder
    if out.exists() and not (out / "protocol.json").exists() and any(out.iterdir() if out.is_dir() else [out]):
        raise ConfigError(f"{str(out)!r} holds something else; give another folder with --out")
    sets = find_data_sets(data)
    if len(sets) > 1:
        say(f"{data} holds {', '.join(found.root.name for found in sets)}; the experiments run on {sets[0].root.name}, the largest")
    backbones = options.get("backbones", Protocol.model_fields["backbones"].default)
    draft = {
        **options,
        "data": sets[0].root,
        "data_name": sets[0].root.name,
        "twin_data": (),
        "weights": _choose_weights(out, backbones, weights),
    }
    group_by = Protocol.parse(draft).twin_group_by
    out.mkdir(parents=True, exist_ok=True)
    chosen = paper_subset(sets[0], out / "images") if paper_size else sets[0].root
    name = sets[0].root.name if chosen == sets[0].root else f"{sets[0].root.name} (a random part of the paper's size)"
    if twin_data:
        twins = [_twin_data(folder, folder.name, group_by) for folder in twin_data]
    else:
        twins = [twin for found in sets[1:] if (twin := _twin_data(found.root, found.root.name, group_by)).grouped]
        main = _twin_data(chosen, name, group_by)
        twins = [main, *twins] if main.grouped or not twins else twins
    protocol = Protocol.parse({**draft, "data": chosen, "data_name": name, "twin_data": tuple(twins)})
    _keep_protocol(protocol, out)
    return protocol


def _twin_data(folder: Path, name: str, group_by: str) -> TwinData:
    keys = group_keys(load_dataset(folder), group_by)
    return TwinData(path=folder, name=name, grouped=keys is not None and len(set(keys)) < len(keys))


def run_study(protocol: Protocol, out: Path, names: Sequence[str], cache_folder: Path, workers: int) -> dict[str, Any]:
    """Do what is not yet done for these items, and write their files and the page of all items that are there.

    Args:
        protocol: From :func:`begin_study`.
        out: Folder of the study.
        names: Keys of ``ITEMS``.
        cache_folder: Where features are cached.
        workers: Processes that train.

    Returns:
        JSON-ready: ``page``, ``seconds`` and ``cpu_seconds`` of this call, and per item its findings and files.

    Raises:
        HqtlError: A training failed; finished parts are kept.
    """
    started, cpu_started = time.perf_counter(), _cpu_seconds()
    items = {name: ITEMS[name] for name in ITEMS if name in names}
    parts = {part.name: part for item in items.values() for part in item.parts(protocol)}
    _warm([part for part in parts.values() if part_record(part, out) is None], cache_folder)
    (out / "runs").mkdir(exist_ok=True)
    do_parts(list(parts.values()), out, cache_folder, workers)
    outcomes = {name: read_outcome(part, out) for name, part in parts.items()}
    for name, item in items.items():
        values = item.collect(protocol, outcomes)
        _write_json(out / f"{name}.json", values)
        _write_csv(out / f"{name}.csv", values["rows"])
        item.draw(values, out)
    _keep_splits(protocol, outcomes, out)
    spent = {"seconds": time.perf_counter() - started, "cpu_seconds": _cpu_seconds() - cpu_started}
    _keep_session({**environment(workers), "items": list(items), **spent}, out)
    sections = _write_page(protocol, out)
    return {
        "page": str(out / "index.html"),
        **spent,
        "items": {section.name: _report(section) for section in sections if section.name in items},
    }


def _report(section: Section) -> dict[str, Any]:
    """What the command prints of an item."""
    files = [f"{section.name}.json", f"{section.name}.csv", *(f"{picture.stem}.{kind}" for picture in section.pictures for kind in FORMATS)]
    findings = [{"paper": f.paper, "ours": f.ours, "agrees": f.agrees, "verdict": f.verdict} for f in section.findings]
    return {"title": section.title, "findings": findings, "files": files}


def _write_page(protocol: Protocol, out: Path) -> list[Section]:
    sections = [
        item.describe(json.loads((out / f"{name}.json").read_bytes())) for name, item in ITEMS.items() if (out / f"{name}.json").exists()
    ]
    sessions = [json.loads(line) for line in (out / "sessions.jsonl").read_text().splitlines()]
    splits = json.loads((out / "splits.json").read_bytes())
    write_page(out, protocol, sections, sessions, splits)
    return sections


def _choose_weights(out: Path, backbones: Sequence[str], wanted: str) -> dict[str, str]:
    """Weights by backbone; those that a study was begun with stay, whether or not they can still be had."""
    if wanted != "none" and (path := out / "protocol.json").exists():
        recorded: dict[str, str] = json.loads(path.read_bytes())["weights"]
        return recorded
    return {backbone: _weights(backbone, wanted) for backbone in backbones}


def _weights(backbone: str, wanted: str) -> str:
    try:
        load_backbone(backbone, wanted)
    except ConfigError as error:
        load_backbone(backbone, "none")  # an unknown name stays an error
        warn(f"{error}")
        warn(f"{backbone} goes on with random weights; every picture and table says so")
        return "none"
    return wanted


def _keep_protocol(protocol: Protocol, out: Path) -> None:
    path = out / "protocol.json"
    values = json.loads(protocol.model_dump_json())
    if not path.exists():
        _write_json(path, values)
        return
    recorded = json.loads(path.read_bytes())
    if changed := [f"{key}: {recorded.get(key)!r} there, {value!r} now" for key, value in values.items() if recorded.get(key) != value]:
        raise ConfigError(f"{str(out)!r} was begun with other options ({'; '.join(changed)}); give the same, or another folder with --out")


def _keep_splits(protocol: Protocol, outcomes: Mapping[str, Outcome], out: Path) -> None:
    path = out / "splits.json"
    known: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
    for outcome in outcomes.values():
        config = outcome.part.configs[0]
        if config.data == protocol.data and config.split_seed is not None:
            data = outcome.data[0]
            known[config.split] = {"counts": data["counts"], "sha256": data["split_sha256"], "leaked": data.get("leaked", 0)}
    _write_json(path, known)


def _keep_session(record: dict[str, Any], out: Path) -> None:
    with (out / "sessions.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def _warm(parts: Sequence[Part], cache_folder: Path) -> None:
    """Compute all features once, with all cores, before several processes ask for them."""
    needed = {_feature_key(config): config for part in parts for config in part.configs}
    for key, config in sorted(needed.items()):
        dataset = load_dataset(config.data)
        say(f"features of {len(dataset.samples)} images in {config.data.name} by {config.backbone}")
        backbone = load_backbone(config.backbone, config.weights, key[-1])
        compute_features(read_source(config.data), backbone, config.preprocess_spec, cache_folder, pick_device(config.device))


def _feature_key(config: FitConfig) -> tuple[str, str, str, int]:
    return config.backbone, config.weights, str(config.data), config.data_seed if config.weights == "none" else 0


def _cpu_seconds() -> float:
    """Of this process and of those it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _write_json(path: Path, values: Any) -> None:
    replace_file(path, (json.dumps(values, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode())


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with replacing(path) as staging, staging.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["path"])
        writer.writeheader()
        writer.writerows(rows)
