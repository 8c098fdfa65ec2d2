"""Files of a run and of its exports, damaged in every way: the same result, or a message that says what to do."""

import sys

import pytest

from tests import headers, mutations

pytestmark = pytest.mark.faults


def test_no_damage_changes_a_result_in_silence(tmp_path, capsys):
    undisturbed = mutations.Undisturbed(mutations.made(tmp_path), tmp_path)
    with mutations.quick():
        outcomes = [
            (case, mutations.tried(case, undisturbed, tmp_path)) for case in mutations.cases(500)
        ]
    assert len(outcomes) >= 500
    with capsys.disabled():
        sys.stdout.write(f"\n{mutations.table(outcomes)}\n")
    assert not mutations.wrong(outcomes)


def test_no_wrong_key_of_a_header_is_an_error_of_ours(tmp_path):
    run, header = headers.made(tmp_path)
    cases = [
        (path, value) for path in headers.keys(header) for value in headers.wrong(header, path)
    ]
    with mutations.quick():
        assert not headers.failures(run, header, cases, headers.COMMANDS)
