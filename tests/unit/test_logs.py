"""What a process of the service writes on standard output."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import logging
from serving import logs
logs.configure()
logging.getLogger("python_multipart.multipart").warning("found %r", b"a byte of a body")
logging.getLogger("uvicorn.error").warning("a line")
"""


def test_lines_are_json_and_no_parser_tells_of_bodies() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=True)
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["message"] == "a line"
    assert not done.stderr
