"""What holds for all tests: one thread for tiny models, and what needs torch is left out where it is not installed."""

from __future__ import annotations

import os
from importlib.util import find_spec

# tiny models lose more time in waking threads than they win; read when torch is first imported, here or in a child
os.environ.setdefault("OMP_NUM_THREADS", "1")

NEED_TORCH = ["recorder/*", "examples/*", "cli/test_demo.py", "cli/test_record.py"]

collect_ignore_glob = [] if find_spec("torch") else NEED_TORCH
