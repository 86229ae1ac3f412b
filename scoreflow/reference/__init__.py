"""Reference runs: networks whose figures are known, run and measured again."""

from scoreflow.reference.manifest import Cell, File, Reference, load, names
from scoreflow.reference.runs import Cost, Outcome, Report, Task, run, task

__all__ = ["Cell", "Cost", "File", "Outcome", "Reference", "Report", "Task", "load", "names", "run", "task"]
