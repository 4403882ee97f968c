"""Parse programs to trees by tree-sitter, in any language with a grammar, and extract functions from a folder."""

from __future__ import annotations

import functools
import importlib
import random
import re
import sysconfig
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from didact.data.trees import Leaf, Node
from didact.types import Text, UserError

STRING = re.compile(r"string$|string_literal|char_literal")  # nodes that are one token, whatever they contain
FUNCTION = re.compile(r"(function|method).*(definition|declaration|item)$")
EXTRA = ("python", "javascript", "go")  # grammars that come with didact[code]
SUFFIXES = {
    "python": ".py", "javascript": ".js", "typescript": ".ts", "go": ".go", "java": ".java", "rust": ".rs", "c": ".c",
    "cpp": ".cpp", "ruby": ".rb", "php": ".php",
}  # fmt: skip
NO_LIBRARY = {"test", "tests", "site-packages", "dist-packages", "idlelib", "lib2to3", "__pycache__", "node_modules"}
MOST = 200_000  # most characters of a source file; longer ones are data


@functools.cache
def parser(language: str) -> Any:
    """Tree-sitter's parser of a language, whose grammar is the package `tree-sitter-LANGUAGE`.

    Raises:
        UserError: tree-sitter or the grammar is not installed, or their versions do not match.
    """
    name = language.lower().replace("-", "_")
    try:
        core = importlib.import_module("tree_sitter")
        grammar = importlib.import_module(f"tree_sitter_{name}")
    except ImportError:
        package = "'didact[code]'" if language in EXTRA else f"tree-sitter tree-sitter-{language}"
        raise UserError(f"language {language}: needs tree-sitter and its grammar: pip install {package}") from None
    language_function = getattr(grammar, "language", None) or getattr(grammar, f"language_{name}", None)
    try:
        return core.Parser(core.Language(language_function()))  # type: ignore[misc]  # a grammar has no types
    except (TypeError, ValueError) as error:  # no grammar in it, or one of another version
        raise UserError(f"language {language}: tree-sitter cannot use its grammar: {error}") from None


def parse(text: str, language: str) -> tuple[str, Node] | None:
    """The program without comments and docstrings, and its tree; None if it does not parse or is one token."""
    read = parser(language)
    code = text.encode()
    root = read.parse(code).root_node
    if root.has_error:
        return None
    if cuts := list(_comments(root)):
        for start, end in reversed(cuts):
            # Keep the words around a comment apart, and a line end in it, which ends a statement in some languages.
            code = code[:start] + (b"\n" if b"\n" in code[start:end] else b" ") + code[end:]
        code = b"\n".join(line.rstrip() for line in code.splitlines() if line.strip())
        root = read.parse(code).root_node
        if root.has_error:
            return None
    plain = code.decode()
    try:
        tree = _tree(root, plain if plain.isascii() else None, code)
    except RecursionError:  # an expression of many hundreds of terms
        return None
    return (plain, tree) if isinstance(tree, Node) else None


def functions(folder: str | Path, language: str, seed: int = 0) -> Iterator[Text]:
    """Yield the functions of the sources in a folder, each once, from files in random order.

    Raises:
        UserError: there are no functions.
    """
    suffix = SUFFIXES.get(language, f".{language}")
    root = Path(folder)
    places = sorted(p for p in root.rglob(f"*{suffix}") if not NO_LIBRARY & set(p.relative_to(root).parts))
    random.Random(seed).shuffle(places)
    seen: set[str] = set()
    for place in places:
        try:
            text = place.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        for snippet in _functions(text, language) if len(text) < MOST else ():
            if snippet not in seen:
                seen.add(snippet)
                yield Text(text=snippet, source=str(place))
    if not seen:
        raise UserError(f"{folder}: no functions in {language} sources (*{suffix})")


def library() -> Path:
    """The folder of Python's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def _functions(text: str, language: str) -> Iterator[str]:
    code = text.encode()
    stack = [parser(language).parse(code).root_node]
    while stack:
        node = stack.pop()
        if FUNCTION.search(node.type):
            line = code.rfind(b"\n", 0, node.start_byte) + 1
            indent = code[line : node.start_byte]
            yield textwrap.dedent((indent if not indent.strip() else b"").decode() + node.text.decode())
        else:
            stack += reversed(node.named_children)


def _comments(root: Any) -> Iterator[tuple[int, int]]:
    """Yield the byte ranges of comments, and of docstrings: strings that are the first statement of a block."""
    stack, ranges = [root], []
    while stack:
        node = stack.pop()
        first = node.parent is not None and node.parent.type in ("module", "block") and node.prev_named_sibling is None
        docstring = node.type == "expression_statement" and [c.type for c in node.children] == ["string"] and first
        if "comment" in node.type or docstring:
            ranges.append((node.start_byte, node.end_byte))
        else:
            stack += node.children
    yield from sorted(ranges)


def _tree(node: Any, plain: str | None, code: bytes) -> Node | Leaf | None:
    """Convert a node to our tree, in characters; None if it covers no text."""
    if node.start_byte == node.end_byte:
        return None
    if not node.children or STRING.search(node.type):
        return _leaf(node, plain, code)
    children = tuple(tree for child in node.children if (tree := _tree(child, plain, code)) is not None)
    return Node(node.type, children) if children else _leaf(node, plain, code)


def _leaf(node: Any, plain: str | None, code: bytes) -> Leaf | None:
    start, end = node.start_byte, node.end_byte
    if not code[start:end].strip():  # a line end that is a token
        return None
    if plain is None:
        start, end = (len(code[:byte].decode()) for byte in (start, end))
    return Leaf(start, end)
