"""From a folder and options to tensors: data set, split, features. The same for a new run, a resumed one and evaluation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hqtl_common.errors import CapabilityError, ConfigError, InputError
from hqtl_common.preprocess import suffixes_of
from hqtl_common.specs import PreprocessSpec
from training.augment import Augmentation, Variant
from training.backbones import Backbone
from training.config import FitConfig
from training.console import progress_bar, say, warn
from training.data import SPLIT_NAMES, ImageDataset, content_hashes, dataset_digest, group_keys, load_dataset, merge_identical
from training.features import FeatureCache, FeatureTable, extract_features
from training.splits import Split, make_folds, make_split, parse_ratio

__all__ = [
    "PreparedData",
    "SourceData",
    "add_variants",
    "assemble",
    "compute_features",
    "divide",
    "pick_device",
    "prepare",
    "read_source",
    "split_source",
]

_FOLD = re.compile(r"fold ([1-9]\d*) of ([1-9]\d*)")


@dataclass(frozen=True, slots=True)
class SourceData:
    """A listed and hashed folder.

    Args:
        dataset: N samples.
        hashes: N content hashes.
        digest: Hash over names, classes and contents.
    """

    dataset: ImageDataset
    hashes: list[str]
    digest: str


@dataclass(frozen=True, slots=True)
class PreparedData:
    """Features and labels of every usable image.

    Args:
        source: The listed folder.
        split: Positions of usable images only.
        record: JSON-ready: labels, split, hashes, counts, unusable images, how many images outside the training split equal one inside.
        features: (N, F) float32.
        truth: (N,) positions in ``source.dataset.labels``.
        variants: (K, N, F) float32: features of K altered copies of every image, to train on instead; None without.
    """

    source: SourceData
    split: Split
    record: dict[str, Any]
    features: NDArray[np.float32]
    truth: NDArray[np.intp]
    variants: NDArray[np.float32] | None = None

    def tensors(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (B, F) float32 and labels (B,) int64 of one split."""
        index = np.asarray(self.split.indices(name), dtype=np.intp)
        return torch.from_numpy(self.features[index]), torch.from_numpy(self.truth[index].astype(np.int64))

    def training_tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (B, F) or, with variants, (K, B, F), and labels (B,) of the training split."""
        features, truth = self.tensors("train")
        if self.variants is not None:
            features = torch.from_numpy(self.variants[:, np.asarray(self.split.train, dtype=np.intp)])
        return features, truth


def read_source(folder: Path, spec: PreprocessSpec | None = None) -> SourceData:
    """List and hash a folder of images, or of volumes where the preprocessing is for volumes.

    Raises:
        InputError: See :func:`training.data.load_dataset`.
    """
    dataset = load_dataset(folder, suffixes_of(spec or PreprocessSpec()))
    hashes = content_hashes(dataset.samples)
    return SourceData(dataset, hashes, dataset_digest(dataset, hashes))


def divide(dataset: ImageDataset, recipe: str, seed: int, groups: Sequence[str] | None = None) -> Split:
    """A split by its recipe: shares like ``70/15/15``, or ``fold 2 of 5`` (:attr:`training.config.FitConfig.split_recipe`).

    Args:
        dataset: N samples.
        recipe: See above.
        seed: Seed of the shuffle.
        groups: N keys; samples of one key stay together.

    Raises:
        ConfigError: A recipe that does not parse.
        InputError: A part would lack a class.
    """
    if (match := _FOLD.fullmatch(recipe)) is None:
        return make_split(dataset, parse_ratio(recipe), seed, groups)
    fold, folds = map(int, match.groups())
    if fold > folds:
        raise ConfigError(f"a fold is one of 1 to the number of folds; got {recipe!r}")
    return make_folds(dataset, folds, seed, groups)[fold - 1]


def split_source(source: SourceData, recipe: str, group_by: str, seed: int) -> Split:
    """Divide a folder by a recipe of :func:`divide`; with grouping, images of equal content count as one group.

    Raises:
        ConfigError: A recipe or grouping that does not parse.
        InputError: A part would lack a class.
    """
    groups = group_keys(source.dataset, group_by)
    merged = None if groups is None else merge_identical(groups, source.hashes)
    divided = divide(source.dataset, recipe, seed, merged)
    leaked = _identical_across(divided, source.hashes)
    if leaked:
        warn(f"{leaked} images outside the training split are byte for byte equal to one inside; figures will look too good")
    return divided


def compute_features(
    source: SourceData, backbone: Backbone, spec: PreprocessSpec, cache_folder: Path, device: str, *, verbose: bool = False
) -> FeatureTable:
    """Features of all images, from the cache where it has them, with a progress bar and a line per unusable image."""
    cache = FeatureCache(cache_folder, backbone, spec)
    with progress_bar("features", len(source.hashes), "images") as advance:
        table = extract_features(source.dataset.samples, source.hashes, backbone, spec, cache=cache, device=device, progress=advance)
    if verbose:
        say(
            f"feature cache: {cache.path} ({cache.size_bytes / 1e6:.1f} MB), {table.num_cached} of {len(source.hashes)} features were there"
        )
    for index, message in table.errors.items():
        warn(f"left out {source.dataset.samples[index].relative}: {message}")
    return table


def prepare(config: FitConfig, backbone: Backbone, cache_folder: Path, device: str, *, verbose: bool = False) -> PreparedData:
    """Everything that training needs.

    Raises:
        ConfigError: An option that does not fit the data.
        InputError: The folder cannot be used.
    """
    source = read_source(config.data, config.preprocess_spec)
    table = compute_features(source, backbone, config.preprocess_spec, cache_folder, device, verbose=verbose)
    return assemble(config, source, table)


def assemble(config: FitConfig, source: SourceData, table: FeatureTable) -> PreparedData:
    """Divide a folder whose features are known.

    Args:
        config: Options.
        source: The folder.
        table: Features of all its images.

    Raises:
        ConfigError: An option that does not fit the data.
        InputError: A part would lack a class.
    """
    split = split_source(source, config.split_recipe, config.group_by, config.data_seed)
    usable = Split(*(tuple(i for i in split.indices(name) if i not in table.errors) for name in SPLIT_NAMES))
    _check_usable(usable, source.dataset)
    record = {
        "labels": list(source.dataset.labels),
        "data_sha256": source.digest,
        "split_sha256": split.digest(source.dataset),
        "counts": usable.counts(source.dataset),
        "split": {name: [source.dataset.samples[i].relative for i in usable.indices(name)] for name in SPLIT_NAMES},
        "leaked": _identical_across(usable, source.hashes),
        "unusable": {source.dataset.samples[i].relative: message for i, message in table.errors.items()},
    }
    truth = np.array([sample.label for sample in source.dataset.samples], dtype=np.intp)
    return PreparedData(source, usable, record, table.features, truth)


def add_variants(config: FitConfig, data: PreparedData, backbone: Backbone, cache_folder: Path, device: str) -> PreparedData:
    """The data with features of altered copies of the training images, where the options ask for them; copy 0 is unaltered.

    Args:
        config: Options.
        data: Without variants.
        backbone: What gives the features.
        cache_folder: Where they are cached.
        device: torch's device for the backbone.
    """
    augmentation, spec = Augmentation.parse(config.augment), config.preprocess_spec
    if augmentation is None:
        return data
    source, train = data.source, np.asarray(data.split.train, dtype=np.intp)
    samples, hashes = [source.dataset.samples[i] for i in train], [source.hashes[i] for i in train]
    cache = FeatureCache(cache_folder, backbone, spec)
    variants = np.zeros((config.augment_variants, *data.features.shape), dtype=np.float32)
    variants[0] = data.features
    with progress_bar("features of altered copies", len(train) * (len(variants) - 1), "images") as advance:
        for number in range(1, len(variants)):
            variant = Variant(augmentation, spec, str(number))
            table = extract_features(samples, hashes, backbone, spec, cache=cache, variant=variant, device=device, progress=advance)
            variants[number, train] = table.features
    return replace(data, variants=variants)


def pick_device(wanted: str) -> str:
    """``cpu`` or ``cuda`` for ``auto``, ``cpu``, ``cuda``.

    Raises:
        CapabilityError: ``cuda`` was asked for and torch finds none.
    """
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise CapabilityError("torch finds no CUDA device on this machine; use --device cpu or auto")
    if not available or wanted == "cpu":
        return "cpu"
    torch.backends.cudnn.allow_tf32 = False  # its short mantissa would move features by more than 1e-4
    return "cuda"


def _identical_across(split: Split, hashes: Sequence[str]) -> int:
    trained = {hashes[i] for i in split.train}
    return sum(hashes[i] in trained for i in (*split.val, *split.test))


def _check_usable(split: Split, dataset: ImageDataset) -> None:
    for name, by_label in split.counts(dataset).items():
        for label, count in by_label.items():
            if not count:
                raise InputError(f"the {name} split has no usable image of class {label!r}; add images or choose another ratio")
