"""What can be set of the emulated platform, and the two instances that it offers."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["INSTANCES", "EmulatorOptions", "Instance"]


@dataclass(frozen=True, slots=True)
class Instance:
    """A service instance.

    Args:
        plan: ``open`` or ``pay-as-you-go``.
        display_name: The plan's name in the catalogue.
        pricing_type: As the catalogue says it.
        limit_seconds: QPU seconds in 28 days, None without a limit.
        sessions: True if dedicated sessions are allowed.
    """

    plan: str
    display_name: str
    pricing_type: str
    limit_seconds: float | None
    sessions: bool

    @property
    def crn(self) -> str:
        """Cloud Resource Name; of no real account."""
        return f"crn:v1:bluemix:public:quantum-computing:us-east:a/emulated:{self.plan}::"

    @property
    def plan_id(self) -> str:
        """Identifier in the catalogue."""
        return f"emulated-{self.plan}"


INSTANCES: tuple[Instance, ...] = (
    Instance("open", "Open", "free", 600.0, sessions=False),
    Instance("pay-as-you-go", "Pay-As-You-Go", "paygo", None, sessions=True),
)


@dataclass(frozen=True, slots=True)
class EmulatorOptions:
    """How the platform behaves.

    Args:
        backends: Names of machines, each with a snapshot: ``ibm_kolkata`` stands for ``fake_kolkata``.
        seed: Of all samples and queue delays.
        time_factor: Real seconds per second of the platform; 0: nothing waits.
        queue_seconds: Shortest and longest wait in the queue, seconds of the platform.
        submits_per_minute: 429 beyond; a minute of the platform. None: no limit.
        max_executions: Of one job; beyond, its validation fails.
        max_job_seconds: QPU seconds after which a job is cancelled.
        open_seconds: QPU seconds of the Open plan, beyond which jobs wait for ever. None: no limit.
        token_lifetime: Seconds until an access token expires.
        listing_lag: Real seconds until a new job appears in listings.
    """

    backends: tuple[str, ...] = ("ibm_fez",)
    seed: int = 0
    time_factor: float = 0.0
    queue_seconds: tuple[float, float] = (0.0, 0.0)
    submits_per_minute: int | None = None
    max_executions: int = 10_000_000
    max_job_seconds: float = 3 * 3600.0
    open_seconds: float | None = 600.0
    token_lifetime: float = 3600.0
    listing_lag: float = 0.0
