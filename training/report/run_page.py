"""``report.html`` of a run: what it is worth, beside its twins, on which data, at which cost, and how to repeat it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hqtl_common import __version__
from hqtl_common.backends.registry import backend_capabilities
from hqtl_common.circuit import circuit_drawing
from hqtl_common.classifier import decide, softmax
from hqtl_common.errors import InputError
from training.calibration import fit_temperature
from training.compare.task import environment
from training.config import FitConfig
from training.reliability import reliability_figures
from training.report.charts import curves_charts, ranking_charts, reliability_chart
from training.report.circuit import circuit_svg
from training.report.evaluations import read_calibration, read_evaluations
from training.report.page import render, svg_source, write_page
from training.report.thumbnails import thumbnail
from training.report.words import headline, twin_verdict
from training.runs import RunFolder
from training.twins import TWINS

__all__ = ["reproduce_command", "write_report"]

_MAX_MISSES = 24
_EXAMPLES = 6  # per class
_WEIGHTS = {"imagenet": "ImageNet weights", "none": "random weights"}
_CONTENDERS = {"bottleneck": "classical twin", "linear": "linear twin"}


def write_report(path: Path, out: Path | None = None, evaluations: Sequence[Path] = (), bundle: Path | None = None) -> Path:
    """Write the page of a finished run; returns where it is.

    Args:
        path: The run folder.
        out: The file; None: ``report.html`` in the run folder.
        evaluations: Files that ``hqtl-train evaluate --json`` printed, set beside the run.
        bundle: The run's bundle, whose calibrations are shown.

    Raises:
        InputError: Not a run, one that has not finished, or a file that is no evaluation.
        BundleError: The bundle cannot be used.
    """
    run = RunFolder(path)
    config, data, result = run.config(), run.data(), run.result()
    if data is None or result is None:
        raise InputError(f"the run {str(path)!r} has not finished; finish it with: hqtl-train fit --resume {path}")
    predictions = run.predictions()
    values = {
        "name": path.absolute().name,
        "config": config,
        "weights": _WEIGHTS.get(config.weights, Path(config.weights).name) + (f", {config.unfreeze} tuned" if config.unfreeze else ""),
        "version": __version__,
        "data": data,
        "result": result,
        "leaked": (leaked := data.get("leaked", 0)),
        "headline": headline(result["test"], leaked),
        "paid": backend_capabilities(config.backend).paid,
        "verdicts": [twin_verdict(twin, result) for twin in TWINS],
        "contenders": _contenders(result),
        "curves": [svg_source(chart) for chart in curves_charts(run.metrics(), result["best_epoch"])],
        "seconds": sum(line["seconds"] for line in run.metrics()),
        "examples": _examples(config.data, data),
        "circuit": (drawing := circuit_svg(config.head_spec)) and svg_source(drawing),
        "circuit_text": circuit_drawing(config.head_spec) if drawing is None else "",
        "evaluations": read_evaluations(evaluations),
        "calibration": read_calibration(bundle),
        "options": _options(config),
        "environment": environment(),
        "command": reproduce_command(config),
        **_answers(predictions, result, config.data),
    }
    return write_page(out or path / "report.html", render("run.html.j2", values))


def reproduce_command(config: FitConfig) -> str:
    """The command line that makes a run with these options."""
    words = ["hqtl-train", "fit", str(config.data), "--out", "RUN"]
    for name, value in _options(config):
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, dict):
            words += [word for key, option in value.items() for word in ("--backend-option", f"{key}={option}")]
        else:
            words += [flag] if value is True else [flag, str(value)]
    return shlex.join(words)


def _options(config: FitConfig) -> list[tuple[str, Any]]:
    """Options that are not the default."""
    defaults = {name: field.default for name, field in FitConfig.model_fields.items()}
    return [(name, value) for name, value in config.model_dump().items() if name != "data" and value != defaults[name]]


def _contenders(result: dict[str, Any]) -> list[dict[str, Any]]:
    rows = [{"key": "hybrid", "name": "quantum head", "figures": result["test"], "p_value": None}]
    for twin in TWINS:
        figures, p_value = result["twins"][twin]["test"], result["mcnemar"][twin]["p_value"]
        rows.append({"key": twin, "name": _CONTENDERS[twin], "figures": figures, "p_value": p_value})
    rows.append({"key": "logistic", "name": "logistic regression", "figures": result["logistic_regression"], "p_value": None})
    low = min(row["figures"]["accuracy_interval"][0] for row in rows)
    start = np.floor(low * 20) / 20  # of the bars' common axis
    for row in rows:
        left, right = row["figures"]["accuracy_interval"]
        place = [round(float(100 * (value - start) / (1 - start)), 2) for value in (left, row["figures"]["accuracy"], right)]
        row["bar"] = {**dict(zip(("low", "at", "high"), place, strict=True)), "start": float(start)}
    return rows


def _examples(root: Path, data: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Thumbnails of some training images by class; nothing where the folder is not reachable."""
    found = []
    for label in data["labels"]:
        paths = [path for path in data["split"]["train"] if label in Path(path).parts]
        chosen = [paths[i] for i in np.linspace(0, len(paths) - 1, min(_EXAMPLES, len(paths))).round().astype(int)]
        pictures = [picture for path in chosen if (picture := thumbnail(root, path))]
        if pictures:
            found.append((label, pictures))
    return found


def _answers(predictions: dict[str, Any] | None, result: dict[str, Any], root: Path) -> dict[str, Any]:
    """Charts and misses of the test split, where its predictions were kept."""
    if predictions is None:
        return {"ranking": [], "reliability": None, "misses": [], "num_misses": 0}
    labels, part = predictions["labels"], predictions["test"]
    truth, positive, binary = np.array(part["truth"]), labels.index(result["positive"]), len(labels) == 2
    probabilities = {name: softmax(np.array(logits)) for name, logits in part["logits"].items()}
    answers = decide(probabilities["hybrid"], positive, 0.5 if binary else None)
    confidence = probabilities["hybrid"][np.arange(len(truth)), answers]
    ranking = []
    if binary and 0 < (truth == positive).sum() < len(truth):
        scores = {name: values[:, positive] for name, values in probabilities.items()}
        ranking = [svg_source(chart) for chart in ranking_charts(truth == positive, scores)]
    wrong = sorted(np.flatnonzero(answers != truth), key=lambda position: -confidence[position])
    misses = [_miss(root, part["paths"][i], labels[truth[i]], labels[answers[i]], confidence[i]) for i in wrong[:_MAX_MISSES]]
    return {"ranking": ranking, "reliability": _reliability(predictions, positive), "misses": misses, "num_misses": len(wrong)}


def _reliability(predictions: dict[str, Any], positive: int) -> str:
    """Of the test split, as trained and with the temperature of the validation split."""
    val, test = predictions["val"], predictions["test"]
    temperature, _ = fit_temperature(np.array(val["logits"]["hybrid"]), np.array(val["truth"]))
    truth, series = np.array(test["truth"]), {}
    for name, divisor in {"as trained": 1.0, f"temperature {temperature:.2f}": temperature}.items():
        probabilities = softmax(np.array(test["logits"]["hybrid"]) / divisor)
        series[f"{name}, ECE {reliability_figures(probabilities, truth, positive)['ece']:.3f}"] = probabilities
        if temperature == 1:
            break
    return svg_source(reliability_chart(series, truth, positive))


def _miss(root: Path, path: str, truth: str, answer: str, confidence: float) -> dict[str, Any]:
    return {"path": path, "truth": truth, "answer": answer, "confidence": confidence, "picture": thumbnail(root, path)}
