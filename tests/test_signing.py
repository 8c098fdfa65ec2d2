"""Signatures: what this user has written, and nobody else."""

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abcsearch import signing
from abcsearch.files import leaves, sealed, unsealed
from abcsearch.signing import SIGNATURE, is_own, key_file, signed

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
names = st.text(max_size=6).filter(lambda name: name not in (SIGNATURE, "checksum"))
records = st.dictionaries(names, values, max_size=4)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config"


@given(record=records, other=records)
def test_a_signature_is_of_one_record_one_kind_and_one_key(record, other):
    mine = signed("run", record)
    read = unsealed(sealed(mine))[0]  # as it comes back from a file
    assert is_own("run", mine)
    assert is_own("run", read)
    assert not is_own("export", mine)
    assert not is_own("run", record)
    assert is_own("run", signed("run", mine))
    if sealed(record) != sealed(other):
        assert not is_own("run", {**other, SIGNATURE: mine[SIGNATURE]})


@pytest.mark.parametrize("wrong", [None, 5, "", "0" * 64, "ä", ["x"], {}])
def test_what_is_no_signature_is_not_ones_own(wrong):
    assert not is_own("run", {"a": 1, SIGNATURE: wrong})


def test_another_key_is_another_user(home, monkeypatch):
    mine = signed("run", {"a": 1})
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "another"))
    assert not is_own("run", mine)
    assert is_own("run", signed("run", {"a": 1}))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home))
    assert is_own("run", mine)


def test_reading_makes_no_key(home):
    assert not is_own("run", {"a": 1, SIGNATURE: "0" * 64})
    assert not home.exists()


@pytest.mark.skipif(os.name != "posix", reason="modes of files are POSIX's")
def test_the_key_is_the_users_alone_or_not_used(home):
    mine = signed("run", {"a": 1})
    assert key_file().stat().st_mode & 0o777 == 0o600
    key_file().chmod(0o640)
    assert not is_own("run", mine)
    with pytest.warns(
        UserWarning, match=r"can be read or changed by others; run: chmod 600 .*--trust"
    ):
        assert SIGNATURE not in signed("run", {"a": 1})
    key_file().chmod(0o600)
    assert is_own("run", mine)


@pytest.mark.parametrize("text", ["", "zz", "00", "ä"])
def test_a_damaged_key_is_said_and_nothing_is_signed(home, text):
    signed("run", {})
    key_file().write_text(text, encoding="utf-8")
    with pytest.warns(UserWarning, match="cannot be marked as your own"):
        assert SIGNATURE not in signed("run", {"a": 1})
    assert not is_own("run", {"a": 1, SIGNATURE: "0" * 64})


def test_without_a_folder_for_it_nothing_is_signed(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="cannot be marked as your own"):
        assert SIGNATURE not in signed("run", {"a": 1})


def test_a_file_system_without_links_keeps_a_key_too(home, monkeypatch):
    def fails(*_):
        raise PermissionError(1, "no links here")

    monkeypatch.setattr(signing.os, "link", fails)
    assert is_own("run", signed("run", {"a": 1}))
    assert [path.name for path in key_file().parent.iterdir()] == ["key"]


def test_processes_that_make_the_key_at_once_have_the_same(home):
    program = "from abcsearch.signing import signed; print(signed('run', {'a': 1})['signature'])"
    started = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    assert len({process.communicate()[0] for process in started}) == 1
    assert [path.name for path in key_file().parent.iterdir()] == ["key"]


@given(record=records, at=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_sealed_record_comes_back_or_is_damaged(record, at, bit):
    text = sealed(record)
    assert unsealed(text) == (record, True)
    content = bytearray(text.encode())
    content[at % len(content)] ^= 1 << bit
    try:
        back = unsealed(content.decode())
    except ValueError:
        return
    # The name of the checksum is hit: then the record is an old one, with an entry that says nothing.
    assert not back[1]
    assert {name: back[0][name] for name in record} == record


@given(record=records, at=st.integers(0, 10**6))
def test_a_sealed_record_that_is_cut_is_damaged(record, at):
    text = sealed(record)
    with pytest.raises(ValueError):  # noqa: PT011 - of json, or ours
        unsealed(text[: at % len(text.rstrip())])


@given(values)
def test_leaves_are_all_values_that_are_no_containers(value):
    kinds = [type(leaf) for _, leaf in leaves(value)]
    assert not {dict, list} & set(kinds)
    if not isinstance(value, dict | list):
        assert [*leaves(value)] == [((), value)]
