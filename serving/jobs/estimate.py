"""What a request will need at its provider, before anything is sent there."""

from __future__ import annotations

from hqtl_common.backends.costs import MAX_EXECUTIONS, estimated_qpu_seconds
from hqtl_common.backends.registry import backend_capabilities
from serving.errors import FieldError
from serving.forms import PredictOptions
from serving.jobs.records import Estimate

__all__ = ["estimate_of"]

_DEFAULT_SHOTS = 1024  # what a machine takes when none are given
_DEPTH = 30  # of the paper's head on a machine


def estimate_of(backend: str, options: PredictOptions, num_images: int) -> Estimate:
    """What ``num_images`` need; nothing on a backend that is free.

    All images are one PUB of one job.

    Raises:
        FieldError: More than one job would be needed, or shots that are chosen image by image.
        ConfigError: Mitigation that does not fit the shots.
    """
    if not backend_capabilities(backend).paid:
        return Estimate()
    from hqtl_common.backends.mitigation import mitigation_of

    if options.max_shots is not None:
        raise FieldError("max_shots", f"is not for {backend!r}: one job has the same shots for all images; set shots")
    shots = options.shots or _DEFAULT_SHOTS
    mitigation = mitigation_of(shots, **options.backend_options)
    executions = mitigation.executions(num_images, shots)
    if executions > MAX_EXECUTIONS:
        raise FieldError(
            "shots",
            f"with {num_images} images and mitigation {options.mitigation or 'none'} needs {executions:,} executions; "
            f"a job has at most {MAX_EXECUTIONS:,}",
        )
    return Estimate(1, executions, estimated_qpu_seconds(1, executions, _DEPTH * max(mitigation.factors)))
