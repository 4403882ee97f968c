"""Hashes of the code a claim's numbers come from. Imports are parsed, nothing is executed.

All code of didact that the modules of a claim and its method reach counts, through any number of imports. Reached code
in `methods`, `worlds`, `objectives` and the families of `claims` is the claim's own, the rest is the core. Comments,
docstrings, layout and names of local variables do not count (`canonical`); imports inside functions,
`"didact.module:name"` in strings, methods taken from their family (`alignment.spin`) and data files that a module names
do.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import json
import re
from collections.abc import Iterable
from pathlib import Path

from didact.claims import canonical

ROOT = Path(__file__).parents[1]
OWN = re.compile(r"didact\.(methods|worlds|objectives|claims\.\w+)\.\w")
DATA = re.compile(r"[\w-]+\.(jsonl?|txt|csv)")
NAMED = re.compile(r"didact(\.\w+)+(:\w+)?")


def sha256(*modules: str) -> tuple[str, str]:
    """Hashes of the own code of these modules, and of the core code that they reach.

    Raises:
        ModuleNotFoundError: one of them has no source.
    """
    reached = _reached(modules)
    own = {name for name in reached if name in modules or OWN.match(name)}
    return _digest(own), _digest(reached - own)


def _digest(modules: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for name in sorted(modules):
        source = _source(name)
        digest.update(f"{name}\n{code(source)}\n".encode())
        for path in _data(name, source):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _data(name: str, source: str) -> list[Path]:
    """Data files that a module's strings name, in the folder of the module."""
    path = _file(name)
    texts = (node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant))
    names = {text for text in texts if isinstance(text, str) and DATA.fullmatch(text)}
    return [file for text in sorted(names) if path and (file := path.with_name(text)).is_file()]


def _reached(modules: Iterable[str]) -> set[str]:
    reached: set[str] = set()
    pending = list(modules)
    while pending:
        name = pending.pop()
        if name not in reached:
            reached.add(name)
            pending += filter(None, map(_module_of, _names(_source(name))))
    return reached


def _source(name: str) -> str:
    path = _file(name)
    if path is None:
        raise ModuleNotFoundError(f"no module '{name}' whose source could be hashed", name=name)
    return path.read_text(encoding="utf-8")


def _file(name: str) -> Path | None:
    """Path of a module's source; of didact's found by name alone, since `find_spec` imports the parent packages."""
    package, *rest = name.split(".")
    if package != "didact":
        spec = importlib.util.find_spec(name)
        return Path(spec.origin) if spec and spec.origin else None
    base = ROOT.joinpath(*rest)
    return next((p for p in (base.with_name(f"{base.name}.py"), base / "__init__.py") if p.exists()), None)


def _module_of(full: str) -> str | None:
    """The module that a dotted name is in. In a package it is the module that defines the name, not the `__init__` that
    loads it: the families load their methods there."""
    parts = full.split(".")
    if len(parts) > 2 and (method := _methods(ROOT).get((parts[1], parts[2]))):
        return method
    for n in range(len(parts), 1, -1):
        name = ".".join(parts[:n])
        path = _file(name)
        if path and path.name != "__init__.py":
            return name
        if path:
            files = sorted(path.parent.glob("*.py"))
            modules = [p.stem for p in files if parts[n:] and parts[n] in _defined(p.read_text())]
            return next((name if stem == "__init__" else f"{name}.{stem}" for stem in modules), None)
    return None


@functools.cache
def _methods(root: Path) -> dict[tuple[str, str], str]:
    """`{(family, function): module}` of the methods, which families import on first use."""
    entries = [json.loads(path.read_text(encoding="utf-8")) for path in root.glob("catalogue/*.json")]
    return {(entry["family"], entry["function"]): entry["module"] for entry in entries}


@functools.cache
def _names(source: str) -> frozenset[str]:
    """Full dotted names of didact that a module uses: its imports, and attributes of these."""
    bound: dict[str, str] = {}
    attributes: set[tuple[str, str]] = set()
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            bound |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            attributes.add((node.value.id, node.attr))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and NAMED.fullmatch(node.value):
            names.add(node.value.replace(":", "."))
    names |= {*bound.values(), *(f"{bound[name]}.{attribute}" for name, attribute in attributes if name in bound)}
    return frozenset(name for name in names if name.startswith("didact."))


@functools.cache
def _defined(source: str) -> frozenset[str]:
    """Names that a module defines at its top level."""
    names: set[str] = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return frozenset(names)


@functools.cache
def code(source: str) -> str:
    """Return the source in canonical form, without comments and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):  # of a module, class, function or block; a lambda's is one expression
            body[:] = [line for line in body if not _is_text(line)] or [ast.Pass()]
    return ast.unparse(canonical.form(tree))


def _is_text(node: ast.stmt) -> bool:
    """Whether a statement is a text alone: a docstring, also of a constant or a field."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
