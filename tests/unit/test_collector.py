"""Full collections leave out what a process started with, and what it imports late."""

from __future__ import annotations

import gc
import subprocess
import sys

from serving.collector import exempt_imports

WORKER = """
import gc
from serving.collector import exempt, exempt_imports

class Loop:
    def __init__(self):
        self.me = self

exempt()
assert gc.get_objects() == [] or len(gc.get_objects()) < 100, len(gc.get_objects())
frozen = gc.get_freeze_count()
with exempt_imports():
    import json.tool
assert gc.get_freeze_count() <= frozen, "a few modules are no reason"
with exempt_imports():
    import pyarrow.parquet, pydantic.main
assert gc.get_freeze_count() > frozen + 1000, gc.get_freeze_count()
loop = Loop()
del loop
assert gc.collect() >= 1, "what comes later is collected as ever"
print("well")
"""


def test_a_worker_leaves_out_what_stays() -> None:
    done = subprocess.run([sys.executable, "-c", WORKER], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("well\n", "", 0)


def test_a_process_that_has_not_asked_keeps_its_collector() -> None:
    before = gc.get_freeze_count()
    with exempt_imports():
        for number in range(100):
            sys.modules[f"hqtl_test_{number}"] = sys
    for number in range(100):
        del sys.modules[f"hqtl_test_{number}"]
    assert gc.get_freeze_count() == before
