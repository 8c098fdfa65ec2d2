"""No message counts "1 trials"."""

import ast
import re
from pathlib import Path

import pytest

import abcsearch
from abcsearch.errors import plural

NOUNS = "trial block structure group layer image epoch worker network dimension round failure evaluation point line CPU"
BEHIND = re.compile(rf"^ (?:[\w-]+ )?({'|'.join(f'{noun}s' for noun in NOUNS.split())})\b")
# More than one wherever they are said, or no count.
ALWAYS = {
    "len(together) runs",
    "rounds rounds",
    "self.workers workers",  # also what a GPU each is too much for, and what shares a batch
    "wanted workers",
    "workers workers",  # of one, every batch is a multiple
    "os.cpu_count() CPUs",
    "wanted prunable groups",
    "most trials",
    "len(str(size)) - 1 structures",
    "ray_address without workers",
    "address without workers",
    "self.size workers",
    "labels.dtype of images",
    "self.difference of outputs",
    "duration_text(timeline.busy) of evaluations",
    "clock_text(search.seconds) of evaluations",
    "100 * value points",
    "100 * change points",
    "100 * (first.mean() - second.mean()) points",
    "moved[0] moves images",  # a setting does
    "conv_groups conv groups",  # of which there are more than one
    "groups groups",  # likewise
    "seconds / interval trials",
}


def counts(path):
    """What stands before such a word in the texts of a module, with the word."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.JoinedStr):
            continue
        for value, text in zip(node.values, node.values[1:], strict=False):
            if isinstance(value, ast.FormattedValue) and isinstance(text, ast.Constant):
                found = BEHIND.match(str(text.value))
                if found:
                    yield f"{ast.unparse(value.value)}{found[0]}"


def test_counts_are_followed_by_words_that_fit():
    package = Path(abcsearch.__file__).parent
    assert {count for path in package.rglob("*.py") for count in counts(path)} <= ALWAYS


@pytest.mark.parametrize(
    ("count", "word", "words"),
    [
        *((0, "trial", "0 trials"), (1, "trial", "1 trial"), (2000, "trial", "2,000 trials")),
        *((1, "box", "1 box"), (3, "box", "3 boxes")),
        *(
            (2, "class", "2 classes"),
            (2, "forward pass", "2 forward passes"),
            (2, "batch", "2 batches"),
            (20, "epoch", "20 epochs"),
        ),
    ],
)
def test_a_count_and_its_word(count, word, words):
    assert plural(count, word) == words


def test_words_with_an_uncommon_plural_are_those_that_were_looked_at():
    words = set()
    for path in Path(abcsearch.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "plural":
                words |= {word.value for word in node.args[1:] if isinstance(word, ast.Constant)}
    assert {"trial", "epoch"} <= words
    uncommon = {
        word.split()[-1]
        for word in words
        if word.endswith(("s", "x", "z", "ch", "sh", "y", "f", "fe", "o"))
    }
    assert uncommon <= {"class", "batch", "box", "epoch", "pass", "process"}
