"""A page for each sampler of the registry, written when the book is built: docstring, facts, coefficients, order, source.

And what the pages of the public objects, which autosummary writes, show of them.
"""

import inspect
import re
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

import scoreflow as sf
from scoreflow import analysis
from scoreflow._catalogue import page_name
from scoreflow._samplers.step import SAMPLERS, VARIANTS

HERE = Path(__file__).parent
FOLDER = HERE / "sampler"
PACKAGE = Path(sf.__file__).parent
STEPS = {"seeds": [40, 80, 160, 320, 640]}
"""Where the default counts show no order yet: an error of third order is the larger one there."""


def write(app):
    """Write what has changed, and nothing else, so that Sphinx reads no page twice."""
    FOLDER.mkdir(exist_ok=True)
    families = {file: file.read_text(encoding="utf-8") for file in sorted((HERE / "families").glob("*.md"))}
    tests = {file: file.read_text(encoding="utf-8") for file in sorted((HERE.parent / "tests").glob("test_*.py"))}
    for name, entry in SAMPLERS.items():
        sampler, file = sf.get_sampler(name), FOLDER / f"{page_name(name)}.md"
        text = f"# {name}\n\n{written(entry.doc)}\n\n{facts(sampler, families, tests)}"
        if isinstance(sampler, sf.Linear):
            plan = sf.plan(name, sf.VPSDE(), 5)
            text += f"\n\n## Coefficients at 5 steps\n\n`sf.plan({name!r}, sf.VPSDE(), 5)`:\n\n{fenced(plan)}"
            if name == "edm-churn":  # its noise depends on the number of steps
                text += "\n\n## Order\n\nIt is that of W₂ to the data's law: [churn](../families/churn.md)."
            elif sampler.order is not None:
                text += f"\n\n## Order\n\n![error against steps, and the declared order]({order(name, sampler)})"
        module, line = entry.place.split(":")
        source = source_from(HERE.parent / module, int(line))
        rows = getattr(sampler, "rows", None)
        if inspect.isfunction(rows) and f"def {rows.__name__}(" not in source:
            source += f"\n\n\n{inspect.getsource(rows).rstrip()}"
        text += f"\n\n## Source\n\n`{entry.place}`:\n\n{fenced(source, 'python')}\n"
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")


def written(doc):
    """A docstring as Markdown: its paragraphs and lists as they are, the work that it goes back to at its end."""
    text, _, reference = doc.partition("Reference:\n")
    return f"{text.rstrip()}\n\n**Reference.** {' '.join(reference.split())}"


def fenced(text, language="text"):
    return f"```{language}\n{text}\n```"


def facts(sampler, families, tests):
    """The lines of `Sampler.doc` after the docstring, with what speaks of the sampler in the book and in the tests."""
    named = re.compile(rf"(?<![\w+-]){re.escape(sampler.name)}(?![\w+])")
    lines = [line.split(maxsplit=1) for line in sampler.doc.rpartition("\n\n")[2].splitlines()]
    rows = [f"| {head} | {rest.replace('|', chr(92) + '|')} |" for head, rest in lines if head != "tests"]
    own = {sampler.name, *(variant for variant, (base, _) in VARIANTS.items() if base == sampler.name)}
    listed = {file: re.search(r"^Names: .*?\n\n", text, re.M | re.S)[0] for file, text in families.items()}
    family = max(listed, key=lambda file: sum(f"`{name}`" in listed[file] for name in own))
    rows.append(f"| family | [{family.stem}](../families/{family.name}) |")
    rules = "`tests/test_rows.py`, `tests/test_orders.py`"
    often = sorted(tests, key=lambda file: -len(named.findall(tests[file])))[:4]
    found = ", ".join(f"`tests/{file.name}`" for file in often if named.search(tests[file]))
    rows.append(f'| tests | `pytest -k "{sampler.name}"`; the rules for all are in {rules}; {found} |')
    return "\n".join(["| | |", "|---|---|", *rows])


def order(name, sampler):
    """The name of a picture of the error against steps; drawn again where the code is newer."""
    image = FOLDER / f"{page_name(name)}.png"
    if image.exists() and image.stat().st_mtime > max(file.stat().st_mtime for file in PACKAGE.rglob("*.py")):
        return image.name
    # iPNDM's and PNDM's weights are those of nodes even in κ: on uniform t they show no order.
    grid = "logsnr" if name in ("ipndm", "pndm") else "uniform"
    seen = analysis.order(name, grid=grid, steps=STEPS.get(name))
    with plt.rc_context({"font.size": 8}):
        figure, ax = plt.subplots(figsize=(4, 2.6), layout="constrained")
        ax.loglog(seen.steps, seen.errors, "o-", ms=3, label=f"observed, {seen.order:.2f}")
        line = [seen.errors[-1] * (seen.steps[-1] / n) ** sampler.order for n in seen.steps]
        ax.loglog(seen.steps, line, ":", label=f"declared, {sampler.order}")
        ax.set(xlabel="steps", ylabel=f"error ({seen.kind})")
        ax.set_xticks(seen.steps, map(str, seen.steps))
        ax.minorticks_off()
        ax.legend(frameon=False)
        figure.savefig(image, dpi=120)
        plt.close(figure)
    return image.name


def source_from(file, line):
    """The function that begins at the line, with its decorator."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(inspect.getblock(lines[line - 1 :])).rstrip()


# -- public objects ------------------------------------------------------------------------------------------------------


def public():
    """The names in the tables of docs/api.md, without `scoreflow.`."""
    return re.findall(r"^   ([A-Za-z][\w.]*)$", (HERE / "api.md").read_text(encoding="utf-8"), re.M)


def files(names):
    """File names for those that differ from another by case only: some file systems see no difference."""
    lower = [name.lower() for name in names]
    return {f"scoreflow.{name}": f"scoreflow.{name}_" for name in names if name.islower() and lower.count(name) > 1}


def bases(app, name, obj, options, found):
    """Bases by their public names; what has none, such as `object`, is not shown."""
    known = {getattr(sf, name): name for name in sf.__all__ if inspect.isclass(getattr(sf, name))}
    shown = [f":py:class:`~scoreflow.{known[base]}`" if base in known else base for base in found]
    found[:] = [base for base in shown if isinstance(base, str) or not base.__module__.startswith("scoreflow")]


def skip(app, what, name, obj, skipped, options):
    """Fields of named tuples stand among the attributes of their docstring."""
    return True if str(getattr(obj, "__doc__", "")).startswith("Alias for field number") else None
