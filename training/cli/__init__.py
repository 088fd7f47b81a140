"""``hqtl-train``: each command builds its objects, calls one function, prints one result.

Nothing heavy is imported before a command runs. Results go to standard output, everything else to standard error;
:mod:`training.cli.common` turns errors into exit codes.
"""

from __future__ import annotations

import click

from hqtl_common import __version__
from training.cli.backbone import backbones, explain
from training.cli.bundles import calibrate, export, inspect, verify
from training.cli.data import data, quickstart
from training.cli.experiments import compare, report
from training.cli.fitting import evaluate, fit
from training.cli.hardware import backends, jobs, plan, rehearse
from training.cli.paper import paper

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="hqtl-train")
def main() -> None:
    """Train, measure and export hybrid quantum transfer-learning classifiers."""


_MODELS = (fit, evaluate, export, calibrate, verify, inspect, explain, backbones)
for _command in (*_MODELS, data, backends, plan, jobs, rehearse, compare, paper, report, quickstart):
    main.add_command(_command)
