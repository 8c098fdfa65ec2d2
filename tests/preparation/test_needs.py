"""What a preparation needs: said in words, refused with figures where there is less."""

import subprocess
import sys

import pytest

from abcsearch import shortages
from abcsearch.errors import PreparationError
from abcsearch.formats import size_text
from abcsearch.preparation import needs
from abcsearch.preparation.needs import Needs, check_needs


def test_free_memory_is_that_of_the_machine_or_its_container(tmp_path, monkeypatch):
    monkeypatch.setattr(shortages, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(shortages, "_CGROUP", tmp_path)
    # All of it, where only that is known
    assert needs.free_memory() is None or needs.free_memory() > 2**20
    (tmp_path / "meminfo").write_text("MemTotal: 900 kB\nMemAvailable:   500 kB\n")
    assert needs.free_memory() == 512_000
    for name, text in {
        "max": "300000\n",
        "current": "200000\n",
        "stat": "anon 5\ninactive_file 50000\n",
    }.items():
        (tmp_path / f"memory.{name}").write_text(text)
    assert needs.free_memory() == 150_000
    (tmp_path / "memory.max").write_text("max\n")
    assert needs.free_memory() == 512_000


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_free_memory_is_within_the_limit_of_the_process():
    """In a process of its own, as batch systems start it: ulimit -v."""
    code = """
import resource
from abcsearch import shortages
before = shortages.free_memory()
used = 4096 * int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, resource.RLIM_INFINITY))
assert before is None or before > 2**28
print(shortages.free_memory())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100
    )
    assert 2**27 < int(done.stdout) <= 2**28


@pytest.mark.parametrize(
    ("free", "refused"),
    [(999_999, True), (1_000_000, False), (None, False)],
    ids=["less", "enough", "unknown"],
)
def test_a_machine_with_less_is_refused_with_figures(monkeypatch, free, refused):
    monkeypatch.setattr(needs, "free_memory", lambda: free)
    wanted = Needs(text="it makes much", memory=1_000_000, disk=2_000, less="set hidden below 4")
    assert wanted.line == "it makes much; memory about 1 MB, 2 kB of the run folder"
    if refused:
        words = r"Mine: it makes much; that takes 1 MB of memory, and 1000 kB are free; set hidden below 4, or take a"
        with pytest.raises(PreparationError, match=words):
            check_needs("Mine", wanted)
    else:
        check_needs("Mine", wanted)


def test_sizes_in_words():
    assert [size_text(count) for count in (0, 999, 1000, 2.5e6, 1.25e9, 3e13)] == [
        "0 bytes",
        "999 bytes",
        "1 kB",
        "2 MB",
        "1.2 GB",
        "30000.0 GB",
    ]
