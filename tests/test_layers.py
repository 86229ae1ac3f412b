"""The rules of the code: who may import whom, where the arithmetic lives, what is written down."""

import ast
import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

import scoreflow as sf

PACKAGE = Path(sf.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {file: ast.parse(file.read_text(encoding="utf-8")) for file in FILES}

LAYERS = [
    {"_html", "_extras"},
    {"_catalogue"},
    {"_core"},
    {"_show"},
    {"_score"},
    {"guidance"},
    {"posterior"},
    {"_samplers"},
    {"_run"},
    {"_uses"},
    {"analysis", "nets", "data", "path"},
    {"checkpoint", "latent"},
    {"zoo", "_sets"},
    {"studies", "interop"},
    {"tuning", "reference"},
    {"_audit"},
    {"training"},
    {"scoreflow"},
    {"cli", "_pytest"},
    {"__main__"},
]
"""From low to high. A module imports from lower layers only, and within a package no two need each other."""

LAZY = (
    "torchdiffeq",
    "torchsde",
    "scipy",
    "sklearn",
    "safetensors",
    "tqdm",
    "matplotlib",
    "pandas",
    "plotly",
    "ot",
    "jinja2",
    "torch_fidelity",
    "lightning_fabric",
    "PIL",
    "distributed",
    "submitit",
    "huggingface_hub",
    "torchcfm",
)
"""Loaded on use only."""

IDS = [str(file.relative_to(PACKAGE)) for file in FILES]
every_file = pytest.mark.parametrize("file", FILES, ids=IDS)


# -- layers -------------------------------------------------------------------------------------------------------------


def part(file):
    """The module or package a file belongs to, directly under scoreflow; scoreflow itself for its __init__."""
    first = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "scoreflow" if first == "__init__" else first


def layer(name):
    (found,) = [i for i, names in enumerate(LAYERS) if name in names]
    return found


def imports(tree):
    """(module, is it inside a function, is it for the type checker only) for every import of the file."""
    functions = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.Lambda) for n in ast.walk(f)}
    typing_only = {
        id(n) for f in ast.walk(tree) if isinstance(f, ast.If) and "TYPE_CHECKING" in ast.dump(f.test) for n in ast.walk(f)
    }
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            if node.module == "scoreflow":
                names = [f"scoreflow.{a.name}" if (PACKAGE / a.name).exists() or (PACKAGE / f"{a.name}.py").exists() else
                         "scoreflow" for a in node.names]  # fmt: skip
            else:
                names = [node.module]
        for name in names:
            yield name, id(node) in functions, id(node) in typing_only


def ours(name):
    """The part of an imported module, or None if it is not ours."""
    parts = name.split(".")
    return None if parts[0] != "scoreflow" else parts[1] if len(parts) > 1 else "scoreflow"


def test_every_part_has_one_layer():
    named = [name for names in LAYERS for name in names]
    assert sorted({part(file) for file in FILES}) == sorted(named), "say in LAYERS where a new module stands"


@every_file
def test_a_lower_layer_never_imports_a_higher_one(file):
    at = part(file)
    for name, _inside, typing_only in imports(TREES[file]):
        other = ours(name)
        if other is None or other == at or typing_only:
            continue
        higher = layer(other) >= layer(at)
        assert not higher, f"{at} imports {other}"


@every_file
def test_imports_inside_functions(file):
    """None of ours; of others only what is loaded on use. The command line loads what a command needs when it runs."""
    for name, inside, typing_only in imports(TREES[file]):
        heavy = name.split(".")[0] in LAZY
        if typing_only:
            continue
        if inside:
            assert heavy or part(file) == "cli", f"{name} is imported inside a function"
        else:
            assert not heavy, f"{name} is loaded with the package"


PACKAGES = sorted({part(file) for file in FILES if file.parent != PACKAGE})


@pytest.mark.parametrize("package", PACKAGES)
def test_files_of_a_package_import_in_a_line(package):
    """Within a package no two files need each other."""
    needs = {
        file.stem: {
            name.split(".")[2]
            for name, _, typing_only in imports(TREES[file])
            if name.startswith(f"scoreflow.{package}.") and not typing_only
        }
        for file in FILES
        if part(file) == package and file.stem != "__init__"
    }
    while needs:
        free = {stem for stem, needed in needs.items() if not needed & set(needs)}
        assert free, f"a circle among {sorted(needs)}"
        needs = {stem: needed for stem, needed in needs.items() if stem not in free}


# -- files --------------------------------------------------------------------------------------------------------------


@every_file
def test_no_file_is_long(file):
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 420


@every_file
def test_every_file_says_what_it_is(file):
    assert ast.get_docstring(TREES[file])


PATH_ARITHMETIC = re.compile(r"expm1|log1p|cumprod|cumsum|sqrt\(1\.? ?- ?|1\.? ?- ?alpha|1\.? ?- ?\w*alpha_bar|alpha ?\*\* ?2")


def code(file):
    """The file without docstrings and comments, line for line as ast prints it."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            node.body = [
                n for n in node.body
                if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant) and isinstance(n.value.value, str))
            ] or [ast.Pass()]  # fmt: skip
    return ast.unparse(tree)


SAMPLING = [f for f in FILES if (part(f) in ("_samplers", "_run") and f.stem != "health") or f.name == "grid.py"]


@pytest.mark.parametrize("file", SAMPLING, ids=[str(f.relative_to(PACKAGE)) for f in SAMPLING])
def test_path_arithmetic_stays_in_the_path(file):
    assert not PATH_ARITHMETIC.findall(code(file))


def test_the_pattern_finds_path_arithmetic():
    for name in ("gaussian.py", "path.py", "chain.py"):
        assert PATH_ARITHMETIC.findall(code(PACKAGE / "_core" / name))
    for line in ("math.sqrt(1 - a)", "1-alpha_bar", "torch.expm1(-h)", "1 - alpha", "alpha**2"):
        assert PATH_ARITHMETIC.search(line)


FORBIDDEN = {
    "torch.set_num_threads", "torch.manual_seed", "torch.random.manual_seed", "torch.seed", "torch.set_default_dtype",
    "torch.set_default_device", "torch.use_deterministic_algorithms", "np.random.seed", "random.seed", "warnings.simplefilter",
}  # fmt: skip


def calls(tree):
    return [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]


@every_file
def test_nobody_changes_what_is_global(file):
    found = calls(TREES[file])
    if part(file) == "training" and "torch.random.fork_rng" in found:
        found = [call for call in found if call != "torch.manual_seed"]  # weights and dropout have no other; it is put back
    assert not FORBIDDEN & set(found)
    assert not [call for call in found if call.endswith((".cpu", ".cuda"))], "the device is the state's"
    assert "print" not in found


# -- docstrings ---------------------------------------------------------------------------------------------------------


def public_classes():
    for info in pkgutil.walk_packages(sf.__path__, "scoreflow."):
        module = importlib.import_module(info.name)
        for name, value in vars(module).items():
            if inspect.isclass(value) and value.__module__ == info.name and not name.startswith("_"):
                yield pytest.param(value, id=f"{info.name.removeprefix('scoreflow.')}.{name}")


@pytest.mark.parametrize("name", sf.__all__)
def test_public_names_have_docstrings(name):
    value = getattr(sf, name)
    assert inspect.getdoc(value)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert value.__doc__, "its own, not its parent's"
        assert not value.__doc__.startswith(f"{name}("), "not the signature that dataclass writes"


@pytest.mark.parametrize("cls", list(public_classes()))
def test_public_methods_have_docstrings(cls):
    """Their own, or that of the method they override."""
    assert cls.__doc__
    bare, fields = [], getattr(cls, "__dataclass_fields__", {})
    for name, value in vars(cls).items():
        method = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if name.startswith("_") or name in fields or not isinstance(method, types.FunctionType | property):
            continue
        if not any(getattr(vars(base).get(name), "__doc__", None) for base in cls.__mro__):
            bare.append(name)
    assert not bare


# -- what an import costs -----------------------------------------------------------------------------------------------

OTHER = ("_audit", "_sets", "checkpoint", "interop", "latent", "posterior", "reference", "studies", "training", "tuning")
USED = [name for name in sf.__all__ if name not in sf.MODULES and sf.LAZY[name].split(".")[1] not in OTHER]
"""What `from scoreflow import …` of a sampling script may name; the rest is training, studies, audits, measurements, and what
others made."""


def fresh(program):
    """What a new process prints."""
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=PACKAGE.parent, env=env)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_import_time():
    """All that samples takes less than half of what sympy takes, which torch brings: 75 ms of 230 on one machine, 40 more of
    which would be too many. Both are Python, once compiled, in time of the processor, so that a busy machine slows them alike.
    """
    program = f"""
from time import process_time
import torch
start = process_time()
import sympy
__import__("gc").freeze()  # a pass of the collector over all that others made is not ours
middle = process_time()
from scoreflow import {", ".join(USED)}
print(process_time() - middle, middle - start)
"""
    taken = [[1000 * float(seconds) for seconds in fresh(program).split()] for _ in range(3)]
    ours, others = (min(times) for times in zip(*taken, strict=True))
    assert ours < others / 2, taken


def test_import_loads_nothing_heavy():
    heavy = ("torchdiffeq", "torchsde", "scipy.integrate", "sklearn", "safetensors", "tqdm", "matplotlib")
    program = f"""
import sys, torch
before = set(sys.modules)
from scoreflow import {", ".join(USED)}
print(*(name for name in {heavy} if name in set(sys.modules) - before))
"""
    assert fresh(program).split() == []


# -- names that are loaded when they are used ---------------------------------------------------------------------------


def test_the_package_alone_loads_nothing():
    program = "import sys, scoreflow; print(*(name for name in ('torch', 'numpy') if name in sys.modules), dir(scoreflow))"
    assert fresh(program).startswith("['")


def test_the_type_checker_sees_what_is_loaded():
    """The imports for it, `__all__` and where names are loaded from say the same; each is the object of its module."""
    typed = {}
    for node in ast.walk(TREES[PACKAGE / "__init__.py"]):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("scoreflow"):
            typed |= {alias.name: node.module for alias in node.names}
    assert typed == {**sf.LAZY, **dict.fromkeys(sf.MODULES, "scoreflow")}
    assert sorted(typed) == sorted({*sf.__all__} - {"__version__"}) and set(typed) < set(dir(sf))
    for name, place in sf.LAZY.items():
        module = importlib.import_module(place)
        assert getattr(sf, name) is (module if name in sf.MODULES else getattr(module, name))
    with pytest.raises(AttributeError, match="module 'scoreflow' has no attribute 'sampels'"):
        sf.sampels  # noqa: B018


def test_any_name_may_be_the_first():
    """Each module is loaded by itself, with torch alone there before, and knows every sampler and grid that is registered."""
    program = """
import sys, torch, scoreflow as sf
counts = set()
for place in sorted({*sf.LAZY.values()}):
    for name in [name for name in sys.modules if name.partition(".")[0] == "scoreflow"]:
        del sys.modules[name]
    __import__(place)
    grids, step = sys.modules.get("scoreflow._core.grid"), sys.modules.get("scoreflow._samplers.step")
    counts |= {("grids", len(grids.GRIDS))} if grids else set()
    counts |= {("samplers", len(step.SAMPLERS))} if step else set()
print(len(counts))
"""
    assert fresh(program).split() == ["2"]


def test_threads_may_be_the_first():
    """Names first used in many threads at once."""
    program = f"""
import threading, torch, scoreflow as sf
wrong, names = [], {[*sf.LAZY]}
gate = threading.Barrier(len(names))
def use(name):
    gate.wait()
    try:
        getattr(sf, name)
    except BaseException as error:
        wrong.append((name, error))
threads = [threading.Thread(target=use, args=(name,)) for name in names]
[thread.start() for thread in threads], [thread.join() for thread in threads]
print(wrong)
"""
    assert fresh(program) == "[]\n"


def test_all_at_once():
    """`from scoreflow import *`, and help."""
    program = f"""
import pydoc
from scoreflow import *
import scoreflow
missing = [name for name in {sf.__all__} if name not in globals()]
text = pydoc.plain(pydoc.render_doc(scoreflow))
print(missing, "class VPSDE" in text, "get_sampler(name" in text)
"""
    assert fresh(program) == "[] True True\n"
