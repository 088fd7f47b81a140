"""The rules of the house, read from the source: who may import whom, what is public, what is never used."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from itertools import combinations
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("hqtl_common", "training", "serving")

# Never imported below a top-level package, not even inside a function.
FORBIDDEN = {
    "hqtl_common": {"torch", "torchvision", "bentoml", "click", "fastapi", "starlette", "training", "serving", "tests", "benchmarks"},
    "training": {"bentoml", "serving", "tests", "benchmarks"},
    "serving": {"torch", "torchvision", "training", "tests", "benchmarks"},
}
# Packages with one home: the modules that may import them.
HOMES = {
    "click": r"(training|serving)\.cli(_keys|\..+)?",
    "qiskit_ibm_runtime": r"hqtl_common\.backends\.(ibm|ibm_account|snapshots)|training\.emulator\..+",
    "pennylane": r"hqtl_common\.backends\.pennylane|training\..+",
    "onnxruntime": r"hqtl_common\.stages|training\..+",
}
# A module of hqtl_common imports from its own layer and the layers above it in this list.
LAYERS: tuple[set[str], ...] = (
    {"errors", "durable"},
    {"specs", "records"},
    {
        *("preprocess", "circuit", "shifts", "calibration", "manifest", "bundle", "georeference"),
        *("tiff_chain", "tiff_windows", "raster_sources", "rasters", "tiles"),
        *("value_ranges", "volumes", "slices", "videos", "frame_choice"),
    },
    {"providers", "stages", "backends", "ledger"},
    {"adaptive", "classifier"},
)
MAX_LINES = 300
LONG_TABLES: set[str] = set()  # modules that are one long table
PICKLING = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


@dataclass(frozen=True)
class Module:
    """One source file."""

    name: str
    source: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)

    @property
    def package(self) -> str:
        return self.name.partition(".")[0]

    def imports(self) -> Iterator[tuple[str, str | None]]:
        """(module, name) of every import, wherever it stands; where importlib is used also strings like ``package.module:attribute``."""
        lazy = "import_module" in self.source
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((alias.name, None) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    parents = self.name.split(".")[: -node.level]
                    base = ".".join([*parents, base] if base else parents)
                yield from ((base, alias.name) for alias in node.names)
            elif (
                lazy and isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"[a-z_]+(\.\w+)+:\w+", node.value)
            ):
                yield node.value.partition(":")[0], None

    def definitions(self) -> list[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
        """Functions and classes at the top level."""
        return [node for node in self.tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]

    def exported(self) -> list[str] | None:
        """The value of ``__all__``, None where it is not a plain list."""
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets):
                return list(ast.literal_eval(node.value))
        return None


def read_modules() -> list[Module]:
    paths = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    dotted = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]
    return [Module(name, path.read_text("utf-8")) for name, path in zip(dotted, paths, strict=True)]


def targets(module: Module, names: set[str]) -> set[str]:
    """Modules of the house that ``module`` imports."""
    found = {f"{base}.{name}" if f"{base}.{name}" in names else base for base, name in module.imports()}
    return (found & names) - {module.name}


# ---------------------------------------------------------------- rules: modules → violations


def forbidden_packages(modules: list[Module]) -> Iterator[str]:
    for module in modules:
        for base, _ in module.imports():
            top = base.partition(".")[0]
            if top in FORBIDDEN[module.package]:
                yield f"{module.name} imports {base}"
            if top in HOMES and not re.fullmatch(HOMES[top], module.name):
                yield f"{module.name} imports {base}, which only {HOMES[top]} may"


def layers(modules: list[Module]) -> Iterator[str]:
    layer_of = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    names = {module.name for module in modules}
    for module in modules:
        part = module.name.split(".")[1] if module.name.startswith("hqtl_common.") else None
        if part is None:
            continue
        if part not in layer_of:
            yield f"{module.name} stands in no layer"
            continue
        for target in sorted(targets(module, names)):
            other = target.split(".")[1] if "." in target else "__init__"
            if layer_of.get(other, len(LAYERS)) > layer_of[part]:
                yield f"{module.name} imports {target} from a layer below it"


def cycles(modules: list[Module]) -> Iterator[str]:
    names = {module.name for module in modules}
    graph = {module.name: targets(module, names) for module in modules}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        yield " → ".join(error.args[1])


def mutual_packages(modules: list[Module]) -> Iterator[str]:
    names = {module.name for module in modules}
    packages = sorted({name.rpartition(".")[0] for name in names if "." in name} - set(PACKAGES))

    def uses(one: str, other: str) -> bool:
        inside = [module for module in modules if module.name.startswith(f"{one}.")]
        return any(target.startswith(f"{other}.") for module in inside for target in targets(module, names))

    for one, other in combinations(packages, 2):
        if uses(one, other) and uses(other, one):
            yield f"{one} and {other} import each other"


def drawers(modules: list[Module]) -> Iterator[str]:
    for module in modules:
        if module.name.rpartition(".")[2].strip("_") in {"util", "utils", "helper", "helpers", "misc"}:
            yield f"{module.name}: name a module after what it does"
        length = len(module.source.splitlines())
        if length > MAX_LINES and module.name not in LONG_TABLES:
            yield f"{module.name} has {length} lines, more than {MAX_LINES}"


def is_command(node: ast.AST) -> bool:
    """A function that click registers is called by its command name, not imported."""
    calls = [decorator.func for decorator in getattr(node, "decorator_list", []) if isinstance(decorator, ast.Call)]
    return any(isinstance(call, ast.Attribute) and call.attr in {"command", "group"} for call in calls)


def public_names(modules: list[Module]) -> Iterator[str]:
    for module in modules:
        public = {node.name for node in module.definitions() if not node.name.startswith("_") and not is_command(node)}
        exported = module.exported()
        if exported is None:
            if public:
                yield f"{module.name} has no __all__"
            continue
        definitions = module.definitions()
        bound = {node.name for node in definitions}
        for node in (part for statement in module.tree.body if statement not in definitions for part in ast.walk(statement)):
            if isinstance(node, ast.ImportFrom):
                bound |= {alias.asname or alias.name for alias in node.names}
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                bound.add(node.id)
        yield from (f"{module.name}.__all__ names {name}, which does not exist" for name in exported if name not in bound)
        yield from (f"{module.name}.{name} is public and not in __all__" for name in sorted(public - set(exported)))


def docstrings(modules: list[Module]) -> Iterator[str]:
    for module in modules:
        if module.tree.body and not ast.get_docstring(module.tree):
            yield f"{module.name} has no docstring"
        for node in module.definitions():
            members = node.body if isinstance(node, ast.ClassDef) else []
            for part in [node, *[m for m in members if isinstance(m, ast.FunctionDef | ast.AsyncFunctionDef)]]:
                if not part.name.startswith("_") and not node.name.startswith("_") and not ast.get_docstring(part):
                    yield f"{module.name}.{node.name}{'' if part is node else '.' + part.name} has no docstring"


def code_from_data(modules: list[Module]) -> Iterator[str]:
    for module in modules:
        yield from (f"{module.name} imports {base}" for base, _ in module.imports() if base.partition(".")[0] in PICKLING)
        for call in (node for node in ast.walk(module.tree) if isinstance(node, ast.Call)):
            name = ast.unparse(call.func)
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            if name in {"eval", "exec", "compile", "torch.save"}:
                yield f"{module.name}:{call.lineno} calls {name}"
            if name in {"torch.load", "load_state_dict_from_url"} and keywords.get("weights_only") != "True":
                yield f"{module.name}:{call.lineno} calls {name} without weights_only=True"
            if keywords.get("allow_pickle", "False") != "False" or keywords.get("shell", "False") != "False":
                yield f"{module.name}:{call.lineno} calls {name} with {keywords}"


RULES: tuple[Callable[[list[Module]], Iterator[str]], ...] = (
    forbidden_packages,
    layers,
    cycles,
    mutual_packages,
    drawers,
    public_names,
    docstrings,
    code_from_data,
)
every_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)


@every_rule
def test_house(rule: Callable[[list[Module]], Iterator[str]]) -> None:
    modules = read_modules()
    assert {module.package for module in modules} == set(PACKAGES)
    assert list(rule(modules)) == []


# ---------------------------------------------------------------- the rules themselves can fail


BAD: list[tuple[Callable[[list[Module]], Iterator[str]], dict[str, str]]] = [
    (forbidden_packages, {"hqtl_common.records": "def f():\n    import torch.nn"}),
    (forbidden_packages, {"serving.service": "from training.fit import fit"}),
    (forbidden_packages, {"serving.lazy": "importlib.import_module('training.fit:fit'.partition(':')[0])"}),
    (forbidden_packages, {"training.fit": "import click"}),
    (forbidden_packages, {"hqtl_common.backends.sampler": "from qiskit_ibm_runtime import SamplerV2"}),
    (layers, {"hqtl_common.circuit": "from hqtl_common.stages import Stage", "hqtl_common.stages": ""}),
    (layers, {"hqtl_common.specs": "from .backends import base", "hqtl_common.backends.base": ""}),
    (layers, {"hqtl_common.errors": "from hqtl_common import HeadSpec", "hqtl_common": ""}),
    (layers, {"hqtl_common.newcomer": ""}),
    (cycles, {"training.a": "from training import b", "training.b": "def f():\n    from . import a"}),
    (mutual_packages, {"serving.x.a": "import serving.y.b", "serving.y.b": "", "serving.y.c": "import serving.x.d", "serving.x.d": ""}),
    (drawers, {"training.utils": ""}),
    (drawers, {"training.long": "x = 1\n" * 301}),
    (public_names, {"training.a": "def f(): ..."}),
    (public_names, {"training.a": "__all__ = ['g']\ndef _g():\n    g = 1"}),
    (public_names, {"training.a": "__all__ = ['F']\nclass F: ...\nasync def g(): ..."}),
    (public_names, {"training.a": "__all__ = []\n@main.option()\ndef f(): ..."}),
    (docstrings, {"training.a": "x = 1"}),
    (docstrings, {"training.a": '"""A."""\nclass F:\n    """F."""\n    def g(self): ...'}),
    (code_from_data, {"training.a": "from pickle import loads"}),
    (code_from_data, {"training.a": "eval('1')"}),
    (code_from_data, {"training.a": "torch.load(p)"}),
    (code_from_data, {"training.a": "torch.load(p, weights_only=False)"}),
    (code_from_data, {"training.a": "np.load(p, allow_pickle=True)"}),
]


@pytest.mark.parametrize(("rule", "sources"), BAD, ids=[f"{rule.__name__}-{number}" for number, (rule, _) in enumerate(BAD)])
def test_rule_finds_a_violation(rule: Callable[[list[Module]], Iterator[str]], sources: dict[str, str]) -> None:
    assert len(list(rule([Module(name, source) for name, source in sources.items()]))) == 1


@every_rule
def test_rule_accepts_what_is_right(rule: Callable[[list[Module]], Iterator[str]]) -> None:
    text = '"""A."""\nimport torch\nfrom hqtl_common.errors import HqtlError\n__all__ = ["f"]\ndef f():\n    """F."""\n    model.eval()\n'
    right = {"training": "", "training.a": text + "    torch.load(p, weights_only=True)", "hqtl_common.errors": '"""E."""'}
    right["training.cli"] = (
        '"""C."""\nimport click\n__all__ = ["main"]\n@click.group()\ndef main():\n    """M."""\n@main.command()\ndef fit():\n    """F."""'
    )
    right["hqtl_common.circuit"] = '"""C."""\nimport hqtl_common.errors'
    assert list(rule([Module(name, source) for name, source in right.items()])) == []
