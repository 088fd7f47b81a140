"""What people open of a finished run: maps, coordinates, boxes, a comparison with truth, one page to hand on."""

from __future__ import annotations

from serving.report.publish import Outputs, publish, publish_outcome, wanted_outputs

__all__ = ["Outputs", "publish", "publish_outcome", "wanted_outputs"]
