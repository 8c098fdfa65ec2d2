"""A sample of what `make test-faults` does to every file of a run, see `tests/mutations.py`."""

import pytest

from tests import mutations

# One of each kind of file, and of each way to damage it but "empty".
SAMPLE = (
    ("finished", "journal.jsonl", "digit"),
    ("finished", "searcher.json", "deleted"),
    ("finished", "fitness.json", "zeros"),
    ("finished", "base.safetensors", "bit"),
    ("finished", "baselines/random/journal.jsonl", "doubled"),
    ("searching", "run.json", "lost"),
    ("tuning", "finetuned/*.checkpoint", "bit"),
    ("training", "base-*.checkpoint", "truncated"),
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    path = tmp_path_factory.mktemp("undisturbed")
    return mutations.Undisturbed(mutations.made(path), path)


def test_damage_is_mended_or_told(undisturbed, tmp_path):
    """Nothing but the same result, or exit status 2 with the file and what to do."""
    with mutations.quick():
        cases = [mutations.Case(*one, seed=number) for number, one in enumerate(SAMPLE)]
        outcomes = [(case, mutations.tried(case, undisturbed, tmp_path)) for case in cases]
    assert not mutations.wrong(outcomes)
    counts = {verdict for _, found in outcomes for _, verdict, _ in found}
    assert {"same", "refused"} <= counts
