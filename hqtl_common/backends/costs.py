"""What IBM bills, estimated from the published figures; needs no client."""

from __future__ import annotations

__all__ = ["MAX_EXECUTIONS", "estimated_qpu_seconds"]

MAX_EXECUTIONS = 10_000_000  # parameter sets × shots of one Sampler job

_JOB_OVERHEAD_S = 2.0
_EXECUTION_S = 250e-6  # default repetition delay
_GATE_S = 100e-9


def estimated_qpu_seconds(jobs: int, executions: int, depth: int = 30) -> float:
    """Billed seconds: 2 s a job, and for each execution the repetition delay and the circuit's length.

    Args:
        jobs: Number of jobs.
        executions: Parameter sets × shots of all of them.
        depth: Of the ISA circuit.
    """
    return _JOB_OVERHEAD_S * jobs + (_EXECUTION_S + depth * _GATE_S) * executions
