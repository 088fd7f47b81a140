"""How well is an image of another data set told from those of the training, and what is it worth to set the unfamiliar ones aside?

``python benchmarks/familiarity.py DATA DATA [DATA …]`` with folders as ``hqtl-train fit`` takes them, of the same classes; features
are cached. Each folder is trained on in turn, divided by source (where it has no ``patches.csv``: by hundreds of file numbers, for
neighbouring numbers may come from one photograph), and the others are scored. The first table compares ways to measure the distance
to the training images: the area under the ROC curve between the own test split and the other set, and the share of the other set
that is flagged where 2 % of the validation split are. The second gives the accuracy with and without the flagged images, for the
way that a bundle uses.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from training.config import FitConfig
from training.familiarity import LEVEL, build_reference
from training.features import default_cache_folder
from training.fit import fit, open_run
from training.trained import SplitFeatures, TrainedRun, load_run, split_features

Distance = Callable[[np.ndarray], np.ndarray]  # features (B, F) → (B,), large = far


def unit(features: np.ndarray) -> np.ndarray:
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def mahalanobis(train: SplitFeatures, *, normalised: bool = False, relative: bool = False) -> Distance:
    """To the nearest class mean, shared covariance by Ledoit and Wolf (Lee et al. 2018); ``relative``: less that to the mean of all."""
    prepare = unit if normalised else np.asarray
    features = prepare(train.features.astype(np.float64))
    means = np.stack([features[train.truth == label].mean(axis=0) for label in np.unique(train.truth)])
    precision = LedoitWolf().fit(features - means[train.truth]).precision_
    everything = LedoitWolf().fit(features)

    def distance(asked: np.ndarray) -> np.ndarray:
        values = prepare(asked.astype(np.float64))
        nearest = np.min([np.einsum("bi,ij,bj->b", values - mean, precision, values - mean) for mean in means], axis=0)
        return nearest - everything.mahalanobis(values) if relative else nearest

    return distance


def nearest(train: SplitFeatures, *, rank: int | None = None, neighbours: int = 1, normalised: bool = True) -> Distance:
    """To the k-th nearest training image, on the unit sphere unless said otherwise (Sun et al. 2022)."""
    prepare = unit if normalised else np.asarray
    features = prepare(train.features.astype(np.float64))
    pca = PCA(min(rank, *features.shape), svd_solver="full").fit(features) if rank else None
    project = pca.transform if pca else np.asarray
    search = NearestNeighbors(n_neighbors=neighbours).fit(project(features))
    return lambda asked: search.kneighbors(project(prepare(asked.astype(np.float64))))[0][:, -1]


def cosine(train: SplitFeatures) -> Distance:
    """Angle to the nearest class mean."""
    means = unit(np.stack([unit(train.features[train.truth == label]).mean(axis=0) for label in np.unique(train.truth)]))
    return lambda asked: -(unit(asked) @ means.T).max(axis=1)


METHODS: dict[str, Callable[[SplitFeatures], Distance]] = {
    "nearest image, unit length, 64 components (used)": lambda train: nearest(train, rank=64),
    "nearest image, unit length": nearest,
    "fifth nearest image, unit length": lambda train: nearest(train, neighbours=5),
    "fifth nearest image": lambda train: nearest(train, neighbours=5, normalised=False),
    "Mahalanobis, unit length": lambda train: mahalanobis(train, normalised=True),
    "Mahalanobis": mahalanobis,
    "Mahalanobis, relative": lambda train: mahalanobis(train, relative=True),
    "angle to the class mean": cosine,
}


def trained(folder: Path, epochs: int, seed: int, where: Path) -> TrainedRun:
    """A hybrid model trained on one of the sets."""
    group_by = "source" if (folder / "patches.csv").exists() else r"^(\w+/\d+)\d\d[._]"
    config = FitConfig(data=folder, group_by=group_by, seed=seed, epochs=epochs, batch_size=16, lr=2e-3)
    run, config = open_run(where, config, resume=False)
    fit(config, run, default_cache_folder())
    return load_run(where)


def compare(splits: dict[str, SplitFeatures], other: np.ndarray) -> dict[str, tuple[float, float]]:
    """AUROC and flagged share of another set, by method."""
    found = {}
    for name, method in METHODS.items():
        distance = method(splits["train"])
        own, held_out, far = (distance(part) for part in (splits["test"].features, splits["val"].features, other))
        share = (1 + (held_out[None, :] >= far[:, None]).sum(axis=1)) / (1 + len(held_out))
        truth = np.repeat([0, 1], [len(own), len(far)])
        found[name] = float(roc_auc_score(truth, np.concatenate([own, far]))), float((share <= LEVEL).mean())
    return found


def accuracy(right: np.ndarray) -> str:
    return f"{right.mean():.3f} ({len(right)})" if len(right) else "– (0)"


@click.command()
@click.argument("data", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--epochs", default=15, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(data: tuple[Path, ...], epochs: int, seed: int) -> None:
    """Train on each folder, score the others."""
    if len(data) < 2:
        raise click.UsageError("give at least two folders")
    with tempfile.TemporaryDirectory() as folder:
        runs = {path.name: trained(path, epochs, seed, Path(folder) / path.name) for path in data}
        splits = {name: split_features(run, default_cache_folder()) for name, run in runs.items()}
    whole = {name: _joined(parts) for name, parts in splits.items()}
    pairs = [(one, other) for one in runs for other in runs if one != other]
    tables: dict[tuple[str, str], dict[str, Any]] = {(a, b): compare(splits[a], whole[b].features) for a, b in pairs}
    click.echo("trained on → scored: " + ", ".join(f"{a} → {b}" for a, b in pairs))
    for method in METHODS:
        cells = " | ".join("{:.3f} {:4.0%}".format(*tables[pair][method]) for pair in pairs)
        mean = statistics.mean(tables[pair][method][0] for pair in pairs)
        click.echo(f"{method:49} mean AUROC {mean:.3f} | {cells}")
    for name, run in runs.items():
        reference = build_reference(splits[name]["train"].features, splits[name]["val"].features)
        for other, part in (("its own test split", splits[name]["test"]), *((b, whole[b]) for a, b in pairs if a == name)):
            right = run.logits(part.features).argmax(axis=1) == part.truth
            strange = reference.familiarity(part.features) <= LEVEL
            click.echo(
                f"trained on {name}, scored {other}: flagged {strange.mean():.1%}; accuracy of all {accuracy(right)}, "
                f"of the familiar {accuracy(right[~strange])}, of the unfamiliar {accuracy(right[strange])}"
            )


def _joined(parts: dict[str, SplitFeatures]) -> SplitFeatures:
    return SplitFeatures(*(np.concatenate([getattr(part, name) for part in parts.values()]) for name in ("features", "truth")))


if __name__ == "__main__":
    main()
