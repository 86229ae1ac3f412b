"""Run the commands of REPRODUCE.md, one after the other, and say which failed.

    python benchmarks/reproduce.py                 # all: hours on two cores
    python benchmarks/reproduce.py --only theory   # those with this word in their row

Commands run where they are: pictures go where their rows say.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console

ROOT = Path(__file__).parent.parent


def commands(only=""):
    """(where, command) of every row with the word in it."""
    rows = re.findall(r"^\| (.+?) \| (.+) \| (`.+`) \|$", (ROOT / "REPRODUCE.md").read_text(encoding="utf-8"), flags=re.M)
    return [(row[0], found) for row in rows if only in " ".join(row) for found in re.findall(r"`([^`]+)`", row[2])]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="a word in the row")
    console, failed = Console(), []
    # What stands beside this interpreter is found first: its python, scoreflow and torchrun.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    env = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", **os.environ, "PATH": path}
    for where, command in commands(parser.parse_args().only):
        console.rule(where)
        console.print(command, highlight=False)
        begun = time.monotonic()
        code = subprocess.run(shlex.split(command), cwd=ROOT, env=env).returncode
        console.print(f"{'failed' if code else 'done'} in {(time.monotonic() - begun) / 60:.1f} min")
        failed += [command] if code else []
    for command in failed:
        console.print(f"failed: {command}", highlight=False)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
