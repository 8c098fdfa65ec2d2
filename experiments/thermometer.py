"""How dense the code is to read: a direction, not a limit.

python -m experiments.thermometer [FOLDER]
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections import Counter
from pathlib import Path

SILENT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
DECISIONS = (
    ast.If,
    ast.IfExp,
    ast.For,
    ast.While,
    ast.ExceptHandler,
    ast.comprehension,
    ast.match_case,
)
MANY = 10  # decisions in a function
VAGUE = ("found", "own", "place", "part", "parts")


def main(folder: str = "abcsearch") -> None:
    """Prints the figures of all modules of a folder, and the names of the functions with most decisions."""
    lines = tokens = 0
    nodes: Counter[str] = Counter()
    vague: Counter[str] = Counter()
    functions: list[tuple[int, str]] = []
    for path in sorted(Path(folder).rglob("*.py")):
        text = path.read_text()
        tree = ast.parse(text)
        spoken = docstrings(tree)
        marks = [
            mark
            for mark in tokenize.generate_tokens(io.StringIO(text).readline)
            if mark.type not in SILENT
        ]
        code = [mark for mark in marks if mark.start[0] not in spoken]
        tokens += len(code)
        lines += len({mark.start[0] for mark in code})
        for node in ast.walk(tree):
            nodes["comprehensions"] += isinstance(node, COMPREHENSIONS)
            if isinstance(node, ast.FunctionDef):
                functions.append((decisions(node), f"{path}:{node.lineno} {node.name}"))
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                vague[node.id] += node.id in VAGUE
    many = sorted(function for function in functions if function[0] > MANY)
    print(f"{lines} lines of code, {len(functions)} functions")
    print(f"{tokens / lines:.1f} tokens per line")
    print(f"{1000 * nodes['comprehensions'] / lines:.0f} comprehensions per 1,000 lines")
    print(f"{100 * len(many) / len(functions):.1f} % of functions with more than {MANY} decisions")
    print(", ".join(f"{name} assigned {vague[name]} times" for name in VAGUE))
    for count, name in reversed(many[-10:]):
        print(f"  {count} decisions: {name}")


def docstrings(tree: ast.AST) -> set[int]:
    """Returns the lines of all docstrings."""
    said = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    ]
    texts = [
        node
        for node in said
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    return {
        line for node in texts for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }


def decisions(function: ast.FunctionDef) -> int:
    """Returns how often a function decides or repeats something, `and` and `or` included."""
    count = 0
    for node in ast.walk(function):
        count += isinstance(node, DECISIONS)
        if isinstance(node, ast.BoolOp):
            count += len(node.values) - 1
        elif isinstance(node, ast.comprehension):
            count += len(node.ifs)
    return count


if __name__ == "__main__":
    main(*sys.argv[1:])
