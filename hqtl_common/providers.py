"""Where ONNX Runtime may compute: its execution providers by short names."""

from __future__ import annotations

from collections.abc import Sequence

from hqtl_common.errors import ConfigError

__all__ = ["CPU", "PROVIDERS", "check_provider_names"]

CPU = ("cpu",)
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}


def check_provider_names(names: Sequence[str]) -> None:
    """Refuse what is not a list of providers; whether they are installed shows when they are used.

    Raises:
        ConfigError: None, an unknown one, or one twice.
    """
    known = ", ".join(PROVIDERS)
    for name in names:
        if name not in PROVIDERS:
            raise ConfigError(f"unknown provider {name!r}; known are {known}")
    if not names or len(set(names)) != len(names):
        raise ConfigError(f"providers must be different ones of {known}, the preferred one first; got {', '.join(names) or 'none'}")
