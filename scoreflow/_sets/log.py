"""What processes say of their work, a file of JSON lines each, and a bar that adds them up."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

FOLDER = "log"


class Log:
    """The log of one of n processes: `log/00002-of-00008.jsonl`, to which a run that goes on adds.

    Every line has the time, what happened (`start`, `batch`, `error`, `stopped`, `end`), and how many samples were made, are
    left, and failed.
    """

    def __init__(self, folder: Path, shard: tuple[int, int], left: int) -> None:
        self.file = file_of(folder, *shard)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.made, self.left, self.errors, self.begun = 0, left, 0, time.perf_counter()
        host = {
            "host": platform.node(),
            "pid": os.getpid(),
            "torch": str(torch.__version__),
            "threads": torch.get_num_threads(),
        }
        self.say("start", **host)

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.perf_counter() - self.begun

    def made_of(self, seeds: Sequence[int], seconds: float) -> None:
        """A batch that is kept."""
        self.made += len(seeds)
        self.left -= len(seeds)
        self.say("batch", seeds=[seeds[0], seeds[-1]], samples=len(seeds), took=round(seconds, 4))

    def failed(self, seed: int, error: Exception) -> None:
        """A sample that there is not."""
        self.errors += 1
        self.left -= 1
        self.say("error", seed=seed, error=f"{type(error).__name__}: {error}")

    def say(self, event: str, **more: Any) -> None:
        """Add a line."""
        counts = {"made": self.made, "left": self.left, "errors": self.errors, "seconds": round(self.seconds, 3)}
        line = {"time": round(time.time(), 3), "event": event, **more, **counts}
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def file_of(folder: Path, i: int, n: int) -> Path:
    """The log of process i of n."""
    return folder / FOLDER / f"{i:05d}-of-{n:05d}.jsonl"


class Progress:
    """A bar over all processes, from the last lines of their logs.

    Args:
        total: samples that are asked for. lacking: how many of them each process lacked when this one looked.
    """

    def __init__(self, folder: Path, total: int, lacking: Sequence[int]) -> None:
        from tqdm.auto import tqdm

        self.folder, self.lacking = folder, lacking
        self.begun = time.time() - 60  # the others may have begun a little before; what is older is of another run
        self.bar: Any = tqdm(total=total, initial=total - self._state()[0], unit=" samples", desc="samples")

    def update(self) -> None:
        """Read the logs and show."""
        left, errors = self._state()
        if errors:
            self.bar.set_postfix(errors=errors, refresh=False)
        self.bar.update(self.bar.total - left - self.bar.n)

    def close(self) -> None:
        """The last of it."""
        self.update()
        self.bar.close()

    def _state(self) -> tuple[int, int]:
        """Samples that are left, and errors."""
        lines = [_last(file_of(self.folder, i, len(self.lacking))) for i in range(len(self.lacking))]
        now = [line if line.get("time", 0.0) >= self.begun else {} for line in lines]
        left = sum(line.get("left", lacked) for line, lacked in zip(now, self.lacking, strict=True))
        return left, sum(line.get("errors", 0) for line in now)


def _last(file: Path) -> dict[str, Any]:
    """The last whole line of a log; empty where there is none."""
    try:
        with open(file, "rb") as opened:
            opened.seek(max(0, opened.seek(0, os.SEEK_END) - 8192))
            lines = opened.read().split(b"\n")
    except FileNotFoundError:
        return {}
    return json.loads(lines[-2]) if len(lines) > 1 else {}
