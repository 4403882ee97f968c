"""Source code in a form that does not depend on what its local variables are called.

Two modules that differ in names of local variables, of lambda parameters or of private functions and constants of the
module have the same canonical form, and no others have. Parameters of functions and attributes keep their names, since
callers elsewhere may use them.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Function = ast.FunctionDef | ast.AsyncFunctionDef
Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp


@dataclass(eq=False)
class Scope:
    """Names bound in a module, class, function, lambda or comprehension."""

    kind: Literal["module", "class", "function", "comprehension"]
    parent: Scope | None = None
    bound: set[str] = field(default_factory=set)
    fixed: set[str] = field(default_factory=set)  # parameters, imports, `global` and `nonlocal`: these keep their names
    outer: set[str] = field(default_factory=set)  # declared `global` or `nonlocal`

    def owner(self, name: str) -> Scope | None:
        """The scope whose variable `name` is here; None for a built-in."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.bound and (scope.kind != "class" or scope is self):
                return scope
            scope = scope.parent
        return None

    def renames(self, name: str) -> bool:
        """Whether nothing outside this scope can refer to its variable `name`."""
        private = self.kind != "module" or (name.startswith("_") and not name.startswith("__"))
        return private and self.kind != "class" and name not in self.fixed


class Occurrence(NamedTuple):
    """An identifier: attribute `place` of `node`."""

    node: ast.AST
    place: str
    scope: Scope
    binds: bool

    @property
    def name(self) -> str:
        """The identifier."""
        return str(getattr(self.node, self.place))


def form(tree: ast.Module) -> ast.Module:
    """Rename in place: every variable that only its own scope can refer to becomes `$n`, by first occurrence."""
    occurrences = list(_occurrences(tree, Scope("module")))
    for occurrence in occurrences:
        if occurrence.binds and occurrence.name not in occurrence.scope.outer:
            occurrence.scope.bound.add(occurrence.name)
    for scope in {id(occurrence.scope): occurrence.scope for occurrence in occurrences}.values():
        for name in scope.outer:
            if owner := scope.owner(name):
                owner.fixed.add(name)
    numbers: dict[tuple[int, str], int] = {}
    for occurrence in occurrences:
        name, owner = occurrence.name, occurrence.scope.owner(occurrence.name)
        if owner is not None and owner.renames(name):
            number = numbers.setdefault((id(owner), name), len(numbers))
            setattr(occurrence.node, occurrence.place, f"${number}")
    return tree


def _occurrences(node: ast.AST, scope: Scope) -> Iterator[Occurrence]:
    """All identifiers that name variables below `node`, in the order of the source's tree."""
    if isinstance(node, ast.Name):
        yield Occurrence(node, "id", scope, isinstance(node.ctx, ast.Store | ast.Del))
    elif isinstance(node, ast.NamedExpr):
        target = scope
        while target.kind == "comprehension" and target.parent is not None:
            target = target.parent
        yield Occurrence(node.target, "id", target, True)
        yield from _occurrences(node.value, scope)
    elif isinstance(node, Function | ast.Lambda):
        yield from _function(node, scope)
    elif isinstance(node, ast.ClassDef):
        yield Occurrence(node, "name", scope, True)
        yield from _all([*node.decorator_list, *node.bases, *node.keywords], scope)
        yield from _all(node.body, Scope("class", scope))
    elif isinstance(node, Comprehension):
        yield from _comprehension(node, scope)
    elif isinstance(node, ast.Global | ast.Nonlocal):
        scope.outer.update(node.names)
    elif isinstance(node, ast.Import | ast.ImportFrom):
        names = {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        scope.bound |= names
        scope.fixed |= names
    else:
        if isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            yield Occurrence(node, "name", scope, True)
        yield from _all(ast.iter_child_nodes(node), scope)


def _function(node: Function | ast.Lambda, scope: Scope) -> Iterator[Occurrence]:
    local, arguments = Scope("function", scope), node.args
    parameters = [*arguments.posonlyargs, *arguments.args, *filter(None, [arguments.vararg]), *arguments.kwonlyargs]
    parameters += filter(None, [arguments.kwarg])
    if isinstance(node, ast.Lambda):
        body: list[ast.AST] = [node.body]
    else:
        yield Occurrence(node, "name", scope, True)
        yield from _all([*node.decorator_list, *filter(None, [node.returns])], scope)
        local.fixed = {parameter.arg for parameter in parameters}
        body = [*node.body]
    yield from _all([*arguments.defaults, *filter(None, arguments.kw_defaults)], scope)
    for parameter in parameters:
        yield from _all(filter(None, [parameter.annotation]), scope)
        yield Occurrence(parameter, "arg", local, True)
    yield from _all(body, local)


def _comprehension(node: Comprehension, scope: Scope) -> Iterator[Occurrence]:
    local = Scope("comprehension", scope)
    yield from _occurrences(node.generators[0].iter, scope)
    for n, generator in enumerate(node.generators):
        yield from _all([generator.target, *([generator.iter] if n else []), *generator.ifs], local)
    results = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
    yield from _all(results, local)


def _all(nodes: Iterable[ast.AST], scope: Scope) -> Iterator[Occurrence]:
    for node in nodes:
        yield from _occurrences(node, scope)
