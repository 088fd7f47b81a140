"""What stays the same from the beginning of a run to its end."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hqtl_common import __version__
from hqtl_common.backends.opening import Limits
from hqtl_common.bundle import ModelBundle
from hqtl_common.errors import InputError
from hqtl_common.manifest import MANIFEST
from hqtl_common.providers import CPU
from serving.decoder import DecoderPool
from serving.scoring.options import Options
from serving.scoring.progress import Reporter
from serving.scoring.unscored import TileRule

__all__ = ["Run", "Where", "bundle_hash", "package_versions"]


@dataclass(frozen=True, slots=True)
class Where:
    """Where and how a run works; nothing of it decides an answer.

    Args:
        engine: A name in :data:`serving.scoring.engines.ENGINES`.
        workers: How much is done at once; None = what the engine finds.
        isolated: Decode in processes of their own, so that an image that crashes the decoder costs only its row.
        ray_address: Of a Ray cluster; None: $RAY_ADDRESS, else one is started on this machine.
        providers: Where the backbone computes, see :data:`hqtl_common.providers.PROVIDERS`; the preferred one first.
    """

    engine: str = "local"
    workers: int | None = None
    isolated: bool = False
    ray_address: str | None = None
    providers: tuple[str, ...] = CPU


@dataclass(frozen=True, slots=True)
class Run:
    """A run.

    Args:
        folder: What is scored, absolute.
        out: The output folder, absolute.
        bundle: The model.
        options: What decides the answers.
        where: Where and how it works.
        reporter: What is told meanwhile.
        should_stop: Asked after every chunk.
        limits: What may be spent on a paid backend.
        pool: Processes that decode, where they were started already.
    """

    folder: Path
    out: Path
    bundle: ModelBundle
    options: Options
    where: Where
    reporter: Reporter
    should_stop: Callable[[], bool]
    limits: Limits | None
    pool: DecoderPool | None = None

    @property
    def versions(self) -> dict[str, str]:
        """What decides the last digits: packages, and where the backbone computes if that is not the processor alone."""
        other = {} if self.where.providers == CPU else {"providers": ",".join(self.where.providers)}
        return package_versions() | other

    @property
    def tile_rule(self) -> TileRule | None:
        """How tiles decide about their image; None where images are scored whole."""
        if self.options.tiles is None:
            return None
        return TileRule(self.options.stride, self.bundle.manifest.positive_label, self.options.tile_quantile or 1.0)


def bundle_hash(bundle: ModelBundle) -> str:
    """SHA-256 of a bundle's manifest, which holds the hashes of all other files, hexadecimal.

    Raises:
        InputError: It cannot be read.
    """
    try:
        return hashlib.sha256((bundle.path / MANIFEST).read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"cannot read {MANIFEST} of the bundle {str(bundle.path)!r}: {error.strerror}") from error


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide the last digits."""
    found = {"hqtl": __version__, **{name: version(name) for name in ("numpy", "onnxruntime", "pillow")}}
    with suppress(PackageNotFoundError):
        found["av"] = version("av")  # decodes videos
    return dict(sorted(found.items()))  # as the record of a run gives them back
