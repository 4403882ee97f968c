"""An mkdocs hook: the reference of `import didact`, from signatures and docstrings; nothing is imported."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import didact

ROOT = Path(didact.__file__).parent
HEAD = """# Python

`import didact` has what stands here and the families of [methods](methods/index.md): `didact.unlearning.npo(...)`.
Nothing is loaded before it is used; `dir(didact)` and TAB list it all. `examples/first_steps.py` is a tour in cells.
"""
ORDER = ("load", "build", "connect", "read", "Model", "Fit", "fit_for", "Result")


def on_files(files: Any, config: Any) -> Any:
    """Add the page."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "python.md", content=page()))
    return files


def page() -> str:
    """The whole reference: functions and classes, then records."""
    names = [*ORDER, *(name for name in didact._LAZY if name not in ORDER)]
    return HEAD + "\n" + "\n".join(line for name in names for line in _entry(name))


def _entry(name: str) -> Iterator[str]:
    node = _found(didact._LAZY[name], name)
    if isinstance(node, ast.FunctionDef):
        yield from _function(node, f"didact.{name}", "##")
        return
    yield from (f"## didact.{name}", "", *_text(ast.get_docstring(node)), "")
    fields = [item for item in node.body if isinstance(item, ast.AnnAssign) and _public(item.target)]
    if fields:
        yield from ("```python", *map(ast.unparse, fields), "```", "")
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and not item.name.startswith("_") and ast.get_docstring(item):
            yield from _function(item, f"{name}.{item.name}", "###")


def _function(node: ast.FunctionDef, title: str, level: str) -> Iterator[str]:
    decorated = {ast.unparse(d) for d in node.decorator_list}
    yield from (f"{level} {title}", "")
    if "property" not in decorated:
        given = ast.unparse(node.args).removeprefix("self, ").removeprefix("self")
        gives = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        yield from ("```python", f"{title.rpartition('.')[2]}({given}){gives}", "```", "")
    yield from (*_text(ast.get_docstring(node)), "")


def _text(docstring: str | None) -> Iterator[str]:
    """A docstring as Markdown: its sections as headings in bold, what they list as lists."""
    section = False
    for line in (docstring or "").splitlines():
        if found := re.fullmatch(r"(Args|Returns|Raises):", line):
            section = True
            yield from ("", f"**{found[1]}**", "")
        elif section and (found := re.fullmatch(r"    (\w+): (.*)", line)):
            yield f"- `{found[1]}`: {found[2]}"
        else:
            yield f"  {line.strip()}" if section else line


def _found(module: str, name: str) -> Any:
    """The definition of a name in a module of ours, or in the one that this takes it from."""
    path = ROOT.joinpath(*module.split(".")[1:])
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    tree = ast.parse(source.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return node
        if isinstance(node, ast.ImportFrom) and any(name in (a.name, a.asname) for a in node.names):
            return _found(str(node.module), name)
    raise LookupError(f"{module} has no {name}")


def _public(target: ast.expr) -> bool:
    return isinstance(target, ast.Name) and not target.id.startswith("_") and target.id != "OPENS"
