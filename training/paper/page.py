"""The page: one self-contained HTML file with every item that is there, ours beside the paper's."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from hqtl_common.durable import replace_file
from training.paper.known import PAPER_SPLITS
from training.paper.protocol import DEVICES, Protocol
from training.paper.sections import Section, Table
from training.paper.style import FORMATS, format_seconds
from training.paper.template import PAGE

__all__ = ["write_page"]

_CLASSES = {True: "agrees", False: "differs", None: "open"}


def write_page(
    out: Path, protocol: Protocol, sections: Sequence[Section], sessions: Sequence[dict[str, Any]], splits: Mapping[str, Any]
) -> None:
    """Write ``index.html``.

    Args:
        out: Folder of the study, with the pictures.
        protocol: Of the study.
        sections: In the order of the page.
        sessions: One record per call of the command: environment, items, seconds.
        splits: Image counts by split.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = environment.from_string(PAGE).render(
        protocol=protocol,
        sections=sections,
        classes=_CLASSES,
        picture=lambda stem: _embedded(out / f"{stem}.svg"),
        formats=FORMATS,
        devices=list(DEVICES.values()),
        random=[backbone for backbone, weights in protocol.weights.items() if weights == "none"],
        splits=_split_table(splits),
        leaked={ratio: found["leaked"] for ratio, found in splits.items() if found.get("leaked")},
        sessions=sessions,
        total=format_seconds(sum(session["seconds"] for session in sessions)),
        total_cpu=format_seconds(sum(session["cpu_seconds"] for session in sessions)),
        machine=sessions[-1],
        format_seconds=format_seconds,
    )
    replace_file(out / "index.html", text.encode())


def _embedded(picture: Path) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(picture.read_bytes()).decode()}"


def _split_table(splits: Mapping[str, Any]) -> Table:
    """The paper's table 4 with ours below it."""
    rows = []
    for ratio, found in splits.items():
        counts = found["counts"]
        rows.append((f"{ratio}, here", *(" / ".join(str(count) for count in counts[name].values()) for name in ("train", "val", "test"))))
        if ratio in PAPER_SPLITS:
            rows.append((f"{ratio}, paper", *(f"{cracks} / {none}" for cracks, none in PAPER_SPLITS[ratio])))
    labels = " / ".join(next(iter(splits.values()))["counts"]["train"]) if splits else ""
    return Table(f"Images ({labels}; the paper: cracks / no cracks)", ("split", "training", "validation", "test"), tuple(rows))
