"""Every benchmark in turn, as one Markdown page.

    python -m benchmarks [--quick] [--only kernel size]

Run from the root of a checkout. Times on a machine that others use are of little worth; ratios are between ways that
took turns in one process.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Final

BENCHMARKS: Final = {
    "kernel": ("The kernel, on one core, in ns per score", []),
    "analysis": ("One trace, from the disk to its maps", []),
    "size": ("Bytes on the disk", []),
    "codecs": ("Compression, on one core", []),
    "writer": ("The writer", []),
    "recording": ("What recording costs", ["--rounds", "3", "--steps", "1", "4"]),
    "many": ("Many traces", []),
}
"""Title and arguments of each, by the name of its script."""


def hardware() -> str:
    """What this machine is and what else it does."""
    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        names = [
            line.partition(":")[2].strip() for line in information.read_text().splitlines() if "model name" in line
        ]
        model = names[0] if names else model
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    load = os.getloadavg()[0]
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "numba", "zarr", "dask", "torch"))
    return (
        f"{os.cpu_count()} cores ({model}), {gigabytes:.0f} GB, {platform.system()}, Python "
        f"{platform.python_version()}, {packages}. Processes that ran or waited to run when this began: {load:.1f}."
    )


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny inputs, to see that everything runs")
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS), help="some of them")
    given = parser.parse_args()
    print(f"{hardware()}\n", flush=True)
    for name in given.only:
        title, arguments = BENCHMARKS[name]
        print(f"## {title}\n", flush=True)
        command = [sys.executable, str(Path(__file__).with_name(f"{name}.py")), *arguments]
        subprocess.run([*command, *(["--quick"] if given.quick else [])], check=True)
        print(flush=True)


if __name__ == "__main__":
    main()
