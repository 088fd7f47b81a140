"""Pictures of why: an image, where the backbone looked, and what the head said about it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import nn

from hqtl_common.bundle import ModelBundle
from hqtl_common.calibration import Applied
from hqtl_common.classifier import applied_calibration, decide, softmax
from hqtl_common.errors import ConfigError, InputError
from hqtl_common.preprocess import preprocess, suffixes_of
from hqtl_common.specs import PreprocessSpec
from training.gradcam import FeatureGradients, feature_gradients, heat_maps, last_feature_map
from training.model import HybridModel
from training.rebuild import rebuild_model
from training.runs import is_run
from training.trained import load_run

__all__ = ["Explanation", "as_record", "explain"]

F32 = NDArray[np.float32]

_BLUE, _ORANGE = "#0072b2", "#d55e00"


@dataclass(frozen=True, slots=True)
class Explanation:
    """One image.

    Args:
        path: The image.
        label: The label given.
        target: The class whose logit the heat speaks of.
        probability: Of ``target``.
        expvals: (n,) exact ⟨Z_i⟩.
        heat: (S, S) or (D, S, S) in [0, 1].
        picture: The PNG file.
    """

    path: Path
    label: str
    target: str
    probability: float
    expvals: tuple[float, ...]
    heat: F32
    picture: Path


@dataclass(frozen=True, slots=True)
class _Model:
    """What a run and a bundle have in common."""

    network: nn.Module
    model: HybridModel
    spec: PreprocessSpec
    labels: tuple[str, ...]
    positive: str
    applied: Applied


def explain(
    model: Path, sources: Sequence[Path], out: Path, *, target: str | None = None, progress: Callable[[int], None] | None = None
) -> tuple[list[Explanation], dict[Path, str]]:
    """Write a picture per image into ``out``: the image, the heat of Grad-CAM over it, and the head's expvals.

    Args:
        model: A run folder (its probabilities are uncalibrated) or a bundle.
        sources: Images, or folders of images.
        out: Folder of the pictures; missing or empty.
        target: Class that the heat speaks for; None takes the label of each image.
        progress: Called with 1 after each image.

    Returns:
        The explanations, and why images could not be used.

    Raises:
        ConfigError: ``out`` is not empty, an unknown class, or a backbone without a feature map.
        InputError: The model cannot be used, or there is no image.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{str(out)!r} exists already; give another folder for the pictures")
    opened = _open(model)
    if target is not None and target not in opened.labels:
        raise ConfigError(f"the model has no class {target!r}; it has {', '.join(opened.labels)}")
    paths = _images(sources, opened.spec)
    layer = last_feature_map(opened.network, opened.spec)
    out.mkdir(parents=True, exist_ok=True)
    done: list[Explanation] = []
    errors: dict[Path, str] = {}
    for number, path in enumerate(paths):
        try:
            pixels = preprocess(path, opened.spec)
            done.append(_explain_one(opened, layer, path, pixels, target, out / f"{number:04d}-{path.stem}.png"))
        except InputError as error:
            errors[path] = str(error)
        if progress:
            progress(1)
    return done, errors


def _open(model: Path) -> _Model:
    if is_run(model):
        run = load_run(model)
        labels = tuple(run.data["labels"])
        threshold = 0.5 if len(labels) == 2 else None
        applied = Applied(1.0, threshold, "uncalibrated")
        return _Model(run.backbone.network, run.model, run.config.preprocess_spec, labels, run.result["positive"], applied)
    bundle = ModelBundle.load(model)
    applied = applied_calibration(bundle.manifest, "statevector", None)
    network, hybrid = rebuild_model(bundle)
    return _Model(network, hybrid, bundle.preprocess, bundle.labels, bundle.manifest.positive_label, applied)


def _images(sources: Sequence[Path], spec: PreprocessSpec) -> list[Path]:
    suffixes = suffixes_of(spec)
    found: list[Path] = []
    for source in sources:
        below = sorted(path for path in source.rglob("*") if path.name.lower().endswith(suffixes)) if source.is_dir() else [source]
        found += [path for path in below if path.is_file()]
    if not found:
        raise InputError(f"there is no image ({' '.join(suffixes)}) in {', '.join(repr(str(source)) for source in sources)}")
    return found


def _explain_one(model: _Model, layer: str, path: Path, pixels: F32, target: str | None, picture: Path) -> Explanation:
    def look(wanted: int | None) -> FeatureGradients:
        return feature_gradients(model.network, model.model, layer, torch.from_numpy(pixels[None]), wanted)

    wanted = None if target is None else model.labels.index(target)
    found = look(wanted)
    probabilities = softmax(found.logits.numpy() / model.applied.temperature)
    label = int(decide(probabilities, model.labels.index(model.positive), model.applied.threshold)[0])
    if wanted is None and label != int(found.targets[0]):  # a threshold of its own makes the less probable class the label
        found = look(label)
    shown = int(found.targets[0])
    explanation = Explanation(
        path,
        model.labels[label],
        model.labels[shown],
        float(probabilities[0, shown]),
        tuple(found.expvals[0].tolist()),
        heat_maps(found, model.spec)[0].numpy(),
        picture,
    )
    calibration = model.applied.name if model.applied.name.startswith("uncalibrated") else f"calibrated for {model.applied.name}"
    _draw(explanation, _grey_or_colour(pixels, model.spec), calibration)
    return explanation


def _grey_or_colour(pixels: F32, spec: PreprocessSpec) -> F32:
    """Pixels (3, …) → what they show (…, 3) in [0, 1]."""
    mean, std = (np.asarray(values, dtype=np.float32) for values in (spec.mean, spec.std))
    shown: F32 = np.clip(np.moveaxis(pixels, 0, -1) * std + mean, 0, 1)
    return shown


def _draw(explanation: Explanation, shown: F32, calibration: str) -> None:
    heat, where = explanation.heat, ""
    speaks = "what" if heat.any() else "nothing on the map"
    if heat.ndim == 3:  # of a volume the slice that speaks most, the middle one where none does
        slice_index = int(heat.sum((1, 2)).argmax()) if heat.any() else len(heat) // 2
        shown, heat, where = shown[slice_index], heat[slice_index], f", slice {slice_index + 1} of {len(heat)}"
    figure = Figure(figsize=(9.6, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 0.8))
    left.imshow(shown)
    left.set_title(_short(explanation.path.name) + where, fontsize=9)
    middle.imshow(shown)
    middle.imshow(heat, cmap="inferno", alpha=0.15 + 0.55 * heat, vmin=0, vmax=1)
    middle.set_title(f"{speaks} speaks for {_short(explanation.target)}", fontsize=9)
    for axes in (left, middle):
        axes.set_axis_off()
    names = [f"⟨Z{index}⟩" for index in range(len(explanation.expvals))]
    colours = [_BLUE if value >= 0 else _ORANGE for value in explanation.expvals]
    right.barh(names, explanation.expvals, color=colours)
    right.set(xlim=(-1, 1), xlabel="expval (exact)")
    right.invert_yaxis()
    right.axvline(0, color="#666666", linewidth=0.8)
    right.spines[["top", "right"]].set_visible(False)
    probability = f"P({_short(explanation.target)}) = {explanation.probability:.3f}"
    figure.suptitle(f"label {_short(explanation.label)}, {probability}   ({calibration})", fontsize=11)
    figure.savefig(explanation.picture, dpi=110, metadata={"Software": None})


def _short(text: str) -> str:
    """A name without what matplotlib would take for mathematics, and not too long."""
    plain = text.encode(errors="replace").decode().replace("$", r"\$")
    return plain if len(plain) <= 40 else f"{plain[:18]}…{plain[-18:]}"


def as_record(explanation: Explanation) -> dict[str, Any]:
    """JSON-ready, without the heat."""
    values = {key: value for key, value in dataclasses.asdict(explanation).items() if key != "heat"}
    return {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}
