"""Do the tests notice a wrong line? One place of the code is changed at a time, and the tests that reach it are run.

    python benchmarks/mutations.py control             # the whole suite under coverage: it must pass
    python benchmarks/mutations.py run --places 150    # half an hour to two hours on two cores
    python benchmarks/mutations.py report

`control` writes down which test executes which line, and its time. `run` draws places at random, evenly over the modules:
an operator, a comparison, a number, a condition, a minus sign. The tests that execute the line run first, the quickest ahead,
then those that execute the function; what they do not notice runs against all that execute any line of the module, for a test
may have its answer from a cache. Only then it has survived. Survivors are to be read: some changes change nothing.
"""

import argparse
import ast
import concurrent.futures
import copy
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as xml
from collections import Counter, defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONTROL, TIMES = ROOT / ".coverage", ROOT / ".mutations.xml"
SINGLE = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def heard():
    """A run in the background hears Ctrl-C, as one of its tests sends, like one in the foreground."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
             ast.Pow: ast.Mult, ast.MatMult: ast.Add, ast.Mod: ast.Mult, ast.BitAnd: ast.BitOr,
             ast.BitOr: ast.BitAnd}  # fmt: skip
COMPARISONS = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
               ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In}  # fmt: skip
CALLS = {"min": "max", "max": "min", "sum": "max", "any": "all", "all": "any", "sin": "cos", "log1p": "log", "expm1": "exp"}


def changed(node):
    """A node that says something else; None where there is nothing to change."""
    other = copy.deepcopy(node)
    match node:
        case ast.BinOp(op=op) if type(op) in OPERATORS:
            other.op = OPERATORS[type(op)]()
        case ast.Compare(ops=[op]) if type(op) in COMPARISONS:
            other.ops = [COMPARISONS[type(op)]()]
        case ast.BoolOp():
            other.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        case ast.UnaryOp(op=ast.USub() | ast.Not()):
            other = other.operand
        case ast.IfExp():
            other.body, other.orelse = other.orelse, other.body
        case ast.Constant(value=bool() as value):
            other.value = not value
        case ast.Constant(value=int() as value):
            other.value = value + 1
        case ast.Constant(value=float() as value):
            other.value = value * 1.5 if value else 1.0
        case ast.Call(func=ast.Name(id=name)) if name in CALLS:
            other.func.id = CALLS[name]
        case ast.Call(func=ast.Attribute(attr=name)) if name in CALLS:
            other.func.attr = CALLS[name]
        case _:
            return None
    return other


def places(file):
    """All (line, enclosing function's lines, source after the change, what was changed) of a module."""
    source = file.read_text()
    lines = source.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line.encode()))
    raw = source.encode()

    def visit(node, function):
        if isinstance(node, ast.JoinedStr | ast.Raise | ast.ImportFrom | ast.Assert):
            return  # what is said of an error
        if isinstance(node, ast.FunctionDef):
            function = (node.lineno, node.end_lineno)
        if (other := changed(node)) is not None:
            begin = starts[node.lineno - 1] + node.col_offset
            end = starts[node.end_lineno - 1] + node.end_col_offset
            text = f"({ast.unparse(other)})"
            what = f"{' '.join(raw[begin:end].decode().split())}  →  {ast.unparse(other)}"
            yield node.lineno, function, (raw[:begin] + text.encode() + raw[end:]).decode(), what
        for name, value in ast.iter_fields(node):
            if name not in ("annotation", "returns"):  # a type is no line that runs
                for child in value if isinstance(value, list) else [value]:
                    if isinstance(child, ast.AST):
                        yield from visit(child, function)

    for place in visit(ast.parse(source), None):
        try:
            compile(place[2], str(file), "exec")
        except SyntaxError:  # a number that is no place of its own, such as in a pattern
            continue
        yield place


def control():
    """Run all tests, with the lines that each executes and its time."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-n",
        "2",
        "--cov=scoreflow",
        "--cov-context=test",
        "--cov-report=",
        f"--junitxml={TIMES}",
    ]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **SINGLE, "PYTHONPATH": str(ROOT)}, preexec_fn=heard)
    if done.returncode:
        raise SystemExit("the control run fails: nothing can be said of changes")


def reached():
    """By module and line: the tests that execute it; and each test's seconds."""
    import coverage

    seconds = {}
    for case in xml.parse(TIMES).iter("testcase"):
        folder, module, *classes = case.get("classname").split(".")
        seconds["::".join([f"{folder}/{module}.py", *classes, case.get("name")])] = float(case.get("time"))
    data = coverage.CoverageData(CONTROL)
    data.read()
    lines = defaultdict(lambda: defaultdict(set))
    for file in data.measured_files():
        name = Path(file).relative_to(
            next(p for p in Path(file).parents if p.name == "scoreflow" and p.parent.name != "scoreflow").parent
        )
        for line, contexts in data.contexts_by_lineno(file).items():
            lines[str(name)][line] = {c.rpartition("|")[0] for c in contexts if c.endswith("|run")}
    return lines, seconds


def tests_fail(tree, chosen, seconds_left, workers=0):
    """Whether one of these tests fails on the tree, or does not end."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as names:
        names.write("\n".join(chosen))
        names.flush()
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-n", str(workers), f"@{names.name}"]
        env = {**os.environ, **SINGLE, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            done = subprocess.run(
                command, cwd=tree, env=env, capture_output=True, text=True, timeout=seconds_left, preexec_fn=heard
            )
        except subprocess.TimeoutExpired:
            return "no end"
        found = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.M)
        return (found.group(1) if found else done.stdout[-200:]) if done.returncode else None


def judge(tree, place, lines, seconds, fast):
    """The test that notices a change, or None; the code is put back."""
    name, line, function, source, _ = place
    file, module = tree / name, lines[name]
    on_line = module[line]
    in_function = set().union(*(module[k] for k in range(function[0], function[1] + 1))) if function else set()
    in_module = set().union(*module.values())
    # A line that runs at import is in no test's account: all of the module may feel it.
    quick = sorted(on_line or in_function or in_module, key=lambda test: seconds.get(test, 9.0))
    before = file.read_text()
    file.write_text(source)
    try:
        done = set()
        for chosen in (quick[:25], quick[25:400], in_function, *([] if fast else [in_module])):
            left = sorted(set(chosen) - done, key=lambda test: seconds.get(test, 9.0))
            left = left[:1000] if fast else left
            done |= set(left)
            if left and (found := tests_fail(tree, left, 60 + 10 * sum(seconds.get(test, 9.0) for test in left))):
                return found
        return None
    finally:
        file.write_text(before)


def run(count, seed, jobs, out, fast):
    """Draw places and judge them; what stands in the file already is not run again."""
    lines, seconds = reached()
    rng, drawn = random.Random(seed), []
    files = sorted(p for p in (ROOT / "scoreflow").rglob("*.py"))
    of = {file: found for file in files if (found := list(places(file)))}
    turns = [*of]
    rng.shuffle(turns)
    while len(drawn) < count:  # evenly over the modules, each place once
        for file in turns:
            if of[file] and len(drawn) < count:
                drawn.append((str(file.relative_to(ROOT)), *of[file].pop(rng.randrange(len(of[file])))))
    known = (
        {(r["module"], r["line"], r["change"]) for r in map(json.loads, out.read_text().splitlines())}
        if out.exists()
        else set()
    )
    left = [p for p in drawn if (p[0], p[1], p[4]) not in known]
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        trees = []
        for k in range(jobs):
            subprocess.run(["git", "clone", "-q", "--shared", str(ROOT), f"{folder}/{k}"], check=True)
            trees.append(Path(folder) / str(k))

        def one(place):
            tree = trees.pop()
            try:
                found = judge(tree, place, lines, seconds, fast)
            finally:
                trees.append(tree)
            with out.open("a") as file:
                row = {"module": place[0], "line": place[1], "change": place[4], "noticed_by": found}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            print(f"{'noticed ' if found else 'SURVIVED'} {place[0]}:{place[1]}  {place[4]}", flush=True)

        list(pool.map(one, left))


def report(out):
    """Print what share is noticed, by module, and what is not."""
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    noticed = Counter(row["module"] for row in rows if row["noticed_by"])
    for module, count in sorted(Counter(row["module"] for row in rows).items()):
        print(f"{noticed[module]}/{count}  {module}")
    print(f"{noticed.total()} of {len(rows)} changes are noticed")
    for row in rows:
        if not row["noticed_by"]:
            print(f"survived: {row['module']}:{row['line']}  {row['change']}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("control", "run", "report"))
    parser.add_argument("--places", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--fast", action="store_true", help="the quick tests only: what is left is to be run again without")
    parser.add_argument("--out", type=Path, default=Path("mutations.jsonl"))
    arguments = parser.parse_args()
    if arguments.what == "control":
        control()
    elif arguments.what == "run":
        run(arguments.places, arguments.seed, arguments.jobs, arguments.out, arguments.fast)
    else:
        report(arguments.out)
