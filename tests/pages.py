"""README and docs as tests read them."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
FRONT = (ROOT / "README.md").read_text(encoding="utf-8")
CHAPTERS = {
    path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))
}
PAGES = {
    ROOT / "README.md": FRONT,
    **{ROOT / "docs" / f"{name}.md": text for name, text in CHAPTERS.items()},
}


def deeper(page: str) -> str:
    """Returns a page with every heading one level below what it is."""
    lines, code = [], False
    for line in page.splitlines(keepends=True):
        code ^= line.startswith("```")
        lines.append(f"#{line}" if line.startswith("#") and not code else line)
    return "".join(lines)


# The guide as one text: its chapters are `## Chapter`. What extending.md shows in code, it shows a second time.
OTHERS = ("api", "extending", "index", "security")
GUIDE = "\n".join([FRONT, *(deeper(text) for name, text in CHAPTERS.items() if name not in OTHERS)])
