"""Folder scoring: one row per image, resumable at any moment."""

from __future__ import annotations

from serving.errors import OutputError
from serving.scoring.folder import score_folder
from serving.scoring.merge import merge_runs
from serving.scoring.options import Options, Request
from serving.scoring.outcome import Outcome

__all__ = ["Options", "Outcome", "OutputError", "Request", "merge_runs", "score_folder"]
