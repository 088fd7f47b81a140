"""Event files for TensorBoard: loss, accuracy, step size, executions, and histograms of the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from hqtl_common.errors import ConfigError
from training.progress import RunProgress
from training.trainer import EpochReport

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["open_trackers"]

_SCALARS = {
    "train_loss": "loss/train",
    "val_loss": "loss/validation",
    "val_accuracy": "accuracy/validation",
    "seconds": "seconds per epoch",
}
_COUNTS = {"parameter_sets": "parameter sets", "jobs": "jobs", "qpu_seconds": "QPU seconds"}


@contextmanager
def open_trackers(runs: Sequence[RunProgress]) -> Iterator[Callable[[list[EpochReport]], None]]:
    """A function that writes what an epoch gave into the event files of the runs that ask for them.

    A run that goes on writes a new file which declares every step after its last whole epoch void, so no step counts twice.

    Args:
        runs: By entry, as far as they are.

    Raises:
        ConfigError: The package that writes the files is missing.
    """
    with ExitStack() as stack:
        writers = {
            entry: stack.enter_context(_writer(run)) for entry, run in enumerate(runs) if run.config.tensorboard and not run.finished
        }

        def track(reports: list[EpochReport]) -> None:
            for report in reports:
                if (writer := writers.get(report.entry)) is not None:
                    _write(writer, report, runs[report.entry].config.lr)

        yield track


def _writer(run: RunProgress) -> SummaryWriter:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError("--tensorboard needs the package tensorboard: pip install tensorboard") from error
    writer = SummaryWriter(str(run.folder.path / "tensorboard"), purge_step=run.epoch + 1 if run.epoch else None)
    if not run.epoch:
        options = {name: str(value) for name, value in run.config.training_record().items()}
        writer.add_text("options", "\n".join(f"- {name}: `{value}`" for name, value in options.items()), 0)
    return writer


def _write(writer: SummaryWriter, report: EpochReport, lr: float) -> None:
    figures, step = report.figures, report.figures["epoch"]
    scalars: dict[str, Any] = {tag: figures[key] for key, tag in (_SCALARS | _COUNTS).items()}
    for name, twin in figures["twins"].items():
        scalars |= {f"{_SCALARS[key]}, {name} twin": value for key, value in twin.items()}
    for tag, value in {**scalars, "lr": lr}.items():
        writer.add_scalar(tag, value, step)
    for name, values in report.state.items():
        writer.add_histogram(name, values, step)
    writer.flush()
