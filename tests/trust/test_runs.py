"""Run folders from elsewhere: shown without code, and continued only by somebody who says that they are trusted."""

import html
import re
import shutil
import sys

import pytest
from typer.testing import CliRunner

from abcsearch import resume
from abcsearch.cli import app
from abcsearch.errors import RunError, TrustError
from abcsearch.files import unsealed
from abcsearch.results.open_run import open_run, open_so_far
from abcsearch.runs.disk.folder import RunFolder
from abcsearch.signing import is_own
from tests.conftest import TINY_CONFIG
from tests.records import aged, rewrite


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run, with its config beside it."""
    folder = tmp_path_factory.mktemp("trust")
    (folder / "tiny.toml").write_text(TINY_CONFIG.replace("n_trials = 24", "n_trials = 6"))
    done = call("search", folder / "tiny.toml", "--run-dir", folder / "run")
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def run(made, tmp_path, monkeypatch):
    """A copy of it, in a working folder of its own with a module that nobody should import."""
    shutil.copytree(made / "run", tmp_path / "run")
    (tmp_path / "evil.py").write_text("import pathlib\npathlib.Path('imported').touch()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # as if it were the user's
    yield tmp_path / "run"
    sys.modules.pop("evil", None)


def said(output):
    """The one message of a command: what it was doing stands before it."""
    (message,) = (line for line in output.splitlines() if line.startswith("error: "))
    return message


def named(run, **settings):
    """Has run.json name something, as somebody who has no key of the user's."""

    def change(header):
        for table, values in settings.items():
            if isinstance(values, dict):
                header["settings"][table] = {**(header["settings"][table] or {}), **values}
            else:
                header["settings"][table] = values

    rewrite(run / "run.json", change)


OUTSIDE = [
    ({"model": {"name": "evil:Net"}}, "'evil:Net' imported"),
    ({"data": {"name": "evil:data"}}, "'evil:data' imported"),
    ({"evaluator": {"name": "evil:make"}}, "'evil:make' imported"),
    ({"evaluator": {"options": {"metric": "evil:metric"}}}, "'evil:metric' imported"),
    ({"evaluator": {"options": {"first": {"metric": "evil:metric"}}}}, "'evil:metric' imported"),
    ({"model": {"name": "evil:"}}, "'evil:' imported"),
    ({"model": {"name": "evil:(x)"}}, "'evil:(x)' imported"),
    ({"data": {"name": "evil: x"}}, "'evil: x' imported"),
    ({"evaluator": {"name": "evil:x-y"}}, "'evil:x-y' imported"),
    ({"evaluator": {"options": {"metric": ":evil"}}}, "':evil' imported"),
    ({"searcher": {"name": "evil:Searcher"}}, "'evil:Searcher' imported"),
    ({"prepare": {"name": "evil:Preparation"}}, "'evil:Preparation' imported"),
    ({"criterion": "evil:criterion"}, "'evil:criterion' imported"),
    ({"criterion": ["l1", "evil:among"]}, "'evil:among' imported"),
    ({"baselines": ["uniform", "evil:thinnest"]}, "'evil:thinnest' imported"),
    ({"data": {"options": {"objective": "evil:objective"}}}, "'evil:objective' imported"),
    ({"data": {"name": "npz", "options": {"path": "x"}}}, "'x' read"),
    ({"data": {"name": "image_folder", "options": {"path": "/etc"}}}, "'/etc' read"),
    ({"model": {"checkpoint": "/etc/hostname"}}, "'/etc/hostname' read"),
    ({"execution": {"ray_address": "10.0.0.1:6379"}}, "Ray reached at '10.0.0.1:6379'"),
    ({"execution": {"ray_address": "auto"}}, "Ray reached at 'auto'"),
]


@pytest.mark.parametrize(("settings", "words"), OUTSIDE, ids=[words for _, words in OUTSIDE])
def test_what_a_folder_from_elsewhere_names_is_said_and_left_alone(run, settings, words):
    named(run, **settings)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for command in ("resume", "finetune", "export"):
        done = call(command, run)
        assert done.exit_code == 2, (command, done.output)
        assert words in done.output
        assert "comes from elsewhere" in done.output
        assert "--trust" in done.output
        assert [line for line in done.output.splitlines() if not line.endswith(" ...")] == [
            said(done.output)
        ]
    for opened in (resume, open_run, open_so_far):
        with pytest.raises(TrustError):
            opened(run)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert "evil" not in sys.modules
    assert not (run.parent / "imported").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": {"name": "evil:Net"}}, "'evil:Net' imported"),
        ({"searcher": {"name": "evil:Searcher"}}, "'evil:Searcher' imported"),
        ({"criterion": "evil:criterion"}, "'evil:criterion' imported"),
        ({"criterion": ["l1", "evil:criterion"]}, "'evil:criterion' imported"),
        ({"evaluator": {"name": "evil:make", "options": {}}}, "'evil:make' imported"),
        ({"baselines": ["uniform", "evil:thinnest"]}, "'evil:thinnest' imported"),
    ],
    ids=["model", "searcher", "criterion", "criteria", "evaluator", "baseline"],
)
@pytest.mark.usefixtures("no_pictures")
def test_without_code_it_is_shown(run, settings, words):
    named(run, **settings)
    assert call("status", run).exit_code == 0
    assert call("status", run, "--json").exit_code == 0
    done = call("report", run)
    assert done.exit_code == 0, done.output
    assert "No table of networks" in done.output
    assert words in done.output.replace("\n", " ")
    done = call("compare", run, run.parent / "run", "--out", run.parent / "compare.html")
    assert done.exit_code == 2  # the same folder twice; it was read
    shutil.copytree(run, run.parent / "other")
    done = call("compare", run, run.parent / "other", "--out", run.parent / "compare.html")
    assert done.exit_code == 0, done.output
    assert not (run.parent / "imported").exists()


def test_data_of_a_folder_from_elsewhere_are_not_loaded_by_evaluate(run, made):
    assert call("export", run).exit_code == 0
    named(run, data={"name": "evil:data"})
    done = call("evaluate", run / "export", "--data", run)
    assert done.exit_code == 2
    assert "'evil:data' imported" in done.output
    assert not (run.parent / "imported").exists()


def test_registered_names_need_no_trust_and_who_continues_signs(run):
    named(run, budget={})  # its signature fits no longer, and it names nothing
    rewrite(run / "run.json", lambda header: header.update(signature="0" * 64))
    assert len(resume(run).trials) == 6
    assert is_own("run", unsealed((run / "run.json").read_text())[0])


def test_trusted_once_it_is_ones_own(run):
    (run.parent / "mynet.py").write_text("from abcsearch.models.resnet import SmallResNet as Net\n")
    named(run, model={"name": "mynet:Net"})
    named(run / "baselines" / "random", model={"name": "mynet:Net"})
    assert call("resume", run).exit_code == 2
    done = call("resume", run, "--trust")
    assert done.exit_code == 0, done.output
    for command in ("resume", "export"):
        done = call(command, run)
        assert done.exit_code == 0, done.output


def test_ones_own_folder_goes_on_wherever_it_lies(run):
    run.rename(run.parent / "elsewhere")
    assert len(resume(run.parent / "elsewhere").trials) == 6


def test_the_config_is_the_users_own_word(made, run):
    rewrite(run / "run.json", lambda header: header.update(signature=None))
    done = call("search", made / "tiny.toml", "--run-dir", run)
    assert done.exit_code == 0, done.output
    assert is_own("run", unsealed((run / "run.json").read_text())[0])


def test_a_folder_of_an_older_version_opens_with_one_line(run):
    for path in run.rglob("*.json"):
        aged(path)
    assert call("status", run).exit_code == 0
    with pytest.warns(
        UserWarning, match="was written by an older version: its files have no checksums"
    ) as warned:
        done = call("resume", run)
    assert done.exit_code == 0, done.output
    assert len(warned) == 1
    assert call("resume", run).exit_code == 0  # without a warning: it is written anew


def test_links_in_a_run_folder_are_not_written_through(run):
    outside = run.parent / "outside"
    outside.mkdir()
    (outside / "file").write_text("mine")
    names = [
        "log.txt",
        "journal.jsonl",
        ".lock",
        ".owner",
        "report.html",
        "baselines/random/journal.jsonl",
    ]
    names += [
        "finetuned",
        "export",
        "report",
        "tensorboard",
        "baselines",
        ".run.json.tmp",
        "base.safetensors",
    ]
    for name in names:
        place, kept = run / name, run.parent / "kept"
        if place.exists():
            place.rename(kept)
        place.symlink_to(outside if "." not in name else outside / "file")
        # The latter needs a journal
        for command in (
            ("resume",) if "journal" in name or name == "baselines" else ("resume", "finetune")
        ):
            done = call(command, run)
            assert done.exit_code == 2, (name, command, done.output)
            assert (
                f"{place} is a link, and links in a run folder are not followed"
                in done.output.replace("\n", "")
            )
        place.unlink()
        if kept.exists():
            kept.rename(place)
    assert [path.name for path in outside.iterdir()] == ["file"]
    assert (outside / "file").read_text() == "mine"


def test_a_report_and_an_export_are_not_written_through_links(run):
    outside = run.parent / "outside"
    outside.mkdir()
    for name, command in (("report.html", "report"), ("report", "report"), ("export", "export")):
        shutil.rmtree(run / "report", ignore_errors=True)
        (run / name).symlink_to(outside / "x" if "." in name else outside)
        done = call(command, run)
        assert done.exit_code == 2, (name, done.output)
        assert "is a link" in done.output
        (run / name).unlink()
    assert not [*outside.iterdir()]


def test_a_run_folder_that_is_itself_a_link_is_the_users_choice(run):
    (run.parent / "link").symlink_to(run)
    (run / "notes").symlink_to(run.parent)  # and so is what they have put there
    assert len(resume(run.parent / "link").trials) == 6
    with pytest.raises(RunError, match="is a link"):
        RunFolder(run).write_json("notes/x.json", {})


def repeated(run):
    """Returns the part of a report that says how to repeat the run."""
    done = call("report", run)
    assert done.exit_code == 0, done.output
    page = (run / "report.html").read_text(encoding="utf-8")
    (section,) = re.findall(r"<h2>How to repeat it</h2>(.*?)</section>", page, re.DOTALL)
    return html.unescape(section)


@pytest.mark.usefixtures("no_pictures")
def test_a_report_of_a_run_of_the_user_has_the_command_and_no_warning(run):
    rewrite(
        run / "run.json",
        lambda header: header["environment"].update(command=["x", "search", "mine.toml"]),
        "run",
    )
    text = repeated(run)
    assert "abcsearch search mine.toml" in text
    assert "elsewhere" not in text


@pytest.mark.parametrize(("settings", "words"), OUTSIDE, ids=[words for _, words in OUTSIDE])
@pytest.mark.usefixtures("no_pictures")
def test_a_report_of_a_folder_from_elsewhere_says_what_its_settings_would_do(run, settings, words):
    named(run, **settings)
    planted = ["x", "search", "https://evil.example/config.toml"]
    rewrite(run / "run.json", lambda header: header["environment"].update(command=planted))
    text = repeated(run)
    before, _, config = text.partition('<pre class="settings">')
    assert "comes from elsewhere" in before
    assert words in before
    assert "evil.example" not in text
    assert "[searcher]" in config
    page = run.parent / "compare.html"
    shutil.copytree(run, run.parent / "other")
    assert call("compare", run, run.parent / "other", "--out", page).exit_code == 0
    assert "evil.example" not in page.read_text(encoding="utf-8")
    assert not (run.parent / "imported").exists()


@pytest.mark.usefixtures("no_pictures")
def test_a_report_of_a_folder_from_elsewhere_that_reaches_nothing_shows_no_command_either(run):
    rewrite(
        run / "run.json",
        lambda header: header["environment"].update(command=["x", "search", "evil.toml"]),
    )
    text = repeated(run)
    assert "evil.toml" not in text
    assert "comes from elsewhere" in text
    assert "nothing imported or read" in text


@pytest.mark.usefixtures("no_pictures")
def test_who_continues_a_run_does_not_take_its_command_as_their_own(run):
    planted = ["x", "search", "evil.toml"]
    rewrite(run / "run.json", lambda header: header["environment"].update(command=planted))
    assert call("resume", run).exit_code == 0
    text = repeated(run)
    assert "elsewhere" not in text  # the settings are theirs now
    assert "evil.toml" not in text
    assert call("resume", run).exit_code == 0
    assert RunFolder(run).header()["environment"]["command_elsewhere"] == planted
