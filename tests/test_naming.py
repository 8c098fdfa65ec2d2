"""Variables say what they are: none has a name that fits any of them."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EMPTY = {"found", "own", "place", "part"}


def variables(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yields the line and the name of everything that is bound, but for the fields of classes."""
    fields = {
        target
        for kind in ast.walk(tree)
        if isinstance(kind, ast.ClassDef)
        for statement in kind.body
        for target in getattr(statement, "targets", [getattr(statement, "target", None)])
    }
    for node in ast.walk(tree):
        match node:
            case ast.Name(ctx=ast.Store(), id=name) if node not in fields:
                yield node.lineno, name
            case ast.arg(arg=name) | ast.ExceptHandler(name=str(name)):
                yield node.lineno, name
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield node.lineno, name
            case ast.MatchMapping(rest=str(name)):
                yield node.lineno, name


def test_no_variable_is_named_as_any_could_be():
    paths = [path for room in ("abcsearch", "experiments") for path in (ROOT / room).rglob("*.py")]
    assert len(paths) > 400
    bad = [
        f"{path.relative_to(ROOT)}:{line}: {word}"
        for path in paths
        for line, word in variables(ast.parse(path.read_text(encoding="utf-8")))
        if word in EMPTY
    ]
    assert bad == []


@pytest.mark.parametrize(
    "code",
    [
        *("own = 1", "own: int = 1", "own += 1", "for own in ():\n pass", "[own for own in ()]"),
        *("def f(own): pass", "def f(*, own=1): pass", "def f(*own): pass", "lambda own: 1"),
        *("(own := 1)", "with a as (b, own):\n pass", "try:\n a\nexcept E as own:\n pass"),
        *("class A:\n def f(self):\n  own = 1", "match a:\n case [own, *_]:\n  pass"),
    ],
)
def test_every_way_to_bind_a_name_is_seen(code):
    assert "own" in {name for _, name in variables(ast.parse(code))}


def test_fields_attributes_keys_and_keywords_may_be_called_so():
    code = 'class A:\n own: int = 1\n part = 2\na.own = a["place"] = f(part=1)\ndef place(): pass'
    assert EMPTY.isdisjoint(name for _, name in variables(ast.parse(code)))
