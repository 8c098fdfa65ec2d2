"""Every config in experiments/ is parsed, traced and rehearsed, on a few images in the real format of its data set."""

import re
from pathlib import Path

import pytest

from abcsearch.config import read_config
from abcsearch.planning.dry_run import rehearse
from abcsearch.searchers.registry import SEARCHERS

ROOT = Path(__file__).parents[2] / "experiments"
CONFIGS = {str(path.relative_to(ROOT)): path for path in sorted(ROOT.glob("**/*.toml"))}
# MFLOPs of the full and of the pruned network as published, and the dimensions with a choice.
PUBLISHED = {
    "abcpruner/cifar10_vgg16.toml": (314.6, 82.81, 13),
    "abcpruner/cifar10_resnet56.toml": (127.6, 58.54, 27),
    "abcpruner/cifar10_resnet110.toml": (257.1, 89.87, 54),
    "abcpruner/cifar10_googlenet.toml": (1534.7, 513.19, 27),
    "abcpruner/imagenet_resnet18.toml": (1824.5, 1005.71, 8),
    "abcpruner/imagenet_resnet34.toml": (3679.3, 2170.77, 16),
    "abcpruner/imagenet_resnet50_alpha100.toml": (4135.9, 2555.55, 32),
    "abcpruner/imagenet_resnet50_alpha70.toml": (4135.6, 1794.45, 32),
    "abcpruner/imagenet_resnet50_alpha50.toml": (4136.0, 1295.4, 32),
    "abcpruner/imagenet_resnet50_alpha30.toml": (4136.0, 951.0, 32),
    "abcpruner/imagenet_resnet101.toml": (7869.0, 3164.91, 66),
    "abcpruner/imagenet_resnet152.toml": (11606.6, 4309.52, 100),
    "amc/imagenet_mobilenet_v1.toml": (569, 284.5, 14),
    "amc/imagenet_mobilenet_v2.toml": (300, 210, 25),
    "eagleeye/imagenet_resnet50_3g.toml": (4089, 3066.8, 37),
    "eagleeye/imagenet_resnet50_2g.toml": (4089, 2044.5, 37),
    "eagleeye/imagenet_resnet50_1g.toml": (4089, 1022.3, 37),
    "eagleeye/imagenet_mobilenet_v1.toml": (569, 284, 14),
    # The networks of 1.5 times the width are not published: as counted.
    "autoslim/imagenet_mobilenet_v1.toml": (1257.7, 325, 14),
    "autoslim/imagenet_mobilenet_v2.toml": (672.8, 305, 25),
    "autoslim/imagenet_resnet50.toml": (4089, 2000, 37),
    "dmcp/imagenet_resnet50_2800m.toml": (4089, 2800, 37),
    "dmcp/imagenet_resnet50_2200m.toml": (4089, 2200, 37),
    "dmcp/imagenet_resnet50_1100m.toml": (4089, 1100, 37),
    "dmcp/imagenet_resnet18_1040m.toml": (1814, 1040, 12),
    "dmcp/imagenet_mobilenet_v2_300m.toml": (672.8, 300, 25),
    "dmcp/imagenet_mobilenet_v2_211m.toml": (672.8, 211, 25),
    "metapruning/imagenet_resnet50_2g.toml": (4100, 2000, 37),
    "metapruning/imagenet_resnet50_1g.toml": (4100, 1000, 37),
    "metapruning/imagenet_mobilenet_v1.toml": (569, 316, 14),
    "metapruning/imagenet_mobilenet_v2.toml": (585, 303, 25),
    "tas/cifar10_resnet20.toml": (40.55, 22.44, 19),
    "tas/cifar10_resnet32.toml": (68.86, 34.95, 31),
    "tas/cifar10_resnet56.toml": (125.49, 57.93, 55),
    "network_adjustment/cifar100_resnet20.toml": (90.92, 40.56, 12),
}
NETWORKS = ("resnet20", "resnet56", "resnet110", "vgg16_cifar", "googlenet_cifar")
TASKS = {
    f"{name}/config.toml" for name in ("detection", "multilabel", "segmentation", "superresolution")
}
# One of every kind; the others are the same with more layers, or other budgets: `make test-zoo` has them.
QUICK = {
    "segmentation/config.toml",
    "superresolution/config.toml",
    "detection/config.toml",
    "digits/config.toml",
    "cifar10/resnet20.toml",
    "cifar10/vgg16_cifar.toml",
    "abcpruner/cifar10_resnet56.toml",
    "abcpruner/imagenet_resnet18.toml",
    "amc/imagenet_mobilenet_v1.toml",
    "eagleeye/imagenet_resnet50_2g.toml",
    "metapruning/imagenet_mobilenet_v2.toml",
    "tas/cifar10_resnet20.toml",
    "network_adjustment/cifar100_resnet20.toml",
    "metapruning/digits.toml",
    "autoslim/imagenet_mobilenet_v1.toml",
    "autoslim/digits.toml",
    "dmcp/imagenet_resnet18_1040m.toml",
}
# Of images here: those of ImageNet are smaller than published, and convolutions cost its square
SIZE = 128 / 224
# Few images: batches of one, and one step of training.
SMALL = {
    "adaptive_bn": ["evaluator.calibration_images=2", "evaluator.batch_size=2"],
    "short_training": ["evaluator.steps=1", "evaluator.batch_size=1"],
}


def tiny_preparation(config):
    """What makes a preparation small: batches of two, a generator of a number per weight."""
    if config.prepare is None:
        return []
    batch = 4 if config.prepare.name == "tas" else 2  # half of its images are for the structure
    small = (
        []
        if "preset" in config.prepare.options["recipe"]
        else [f"prepare.recipe.batch_size={batch}"]
    )
    return [*small, *(["prepare.hidden=1"] if config.prepare.name == "pruning_net" else [])]


def overrides(path, folder):
    """What makes a config run on the few images."""
    config = read_config(path)
    own = [*SMALL[config.evaluator.name], "finetune.batch_size=1", *tiny_preparation(config)]
    match config.data.name:
        case "cifar10" | "cifar100":
            own += ["pretrain.batch_size=1"] if config.pretrain is not None else []
            # There are two of every class
            own += ["data.validation=0.5"] if config.data.name == "cifar100" else []
            return [*own, f"data.path={folder}"]
        case "image_folder":
            trained = config.pretrain is not None
            return [
                *own,
                f"data.path={folder / 'cifar10-jpeg'}",
                *(["pretrain.batch_size=1"] if trained else []),
            ]
        case "imagenet":
            small = ["data.validation=2", "data.workers=0", "data.size=128", "data.resize=128"]
            if isinstance(config.budget.macs, int):
                small.append(f"budget.macs={int(SIZE**2 * config.budget.macs)}")
            return [*own, *small, f"data.path={folder / 'imagenet'}"]
        case "superresolution_samples":
            return []  # nothing is calibrated
        case "shapes":
            pytest.importorskip("torchmetrics", reason="mAP needs the extra `detection`")
            return [
                "data.train=60",
                "data.test=10",
                "evaluator.calibration_images=16",
                "evaluator.batch_size=16",
            ]
    return ["evaluator.calibration_images=128", *tiny_preparation(config)]


def test_every_published_setting_has_a_config():
    ours = {
        *TASKS,
        "digits/config.toml",
        "chain/digits.toml",
        "chain/resnet20.toml",
        "chain/vgg16.toml",
        "chain/ranks.toml",
        "controls/digits.toml",
        "controls/resnet20.toml",
        "survey/digits.toml",
        "survey/resnet20.toml",
        "autoslim/digits.toml",
        "metapruning/digits.toml",
        *(f"cifar10/{name}.toml" for name in NETWORKS),
    }
    assert set(CONFIGS) == ours | set(PUBLISHED)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.zoo) for name in CONFIGS]
)
def test_a_config_can_be_searched(name, stand_in, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = read_config(CONFIGS[name], overrides(CONFIGS[name], stand_in))
    found = rehearse(config, tmp_path / "run", patience=0)
    assert list(tmp_path.iterdir()) == []
    assert found.evaluation.failure is None
    assert (
        min(
            found.evaluation.seconds, found.search, *(tuning.seconds for tuning in found.finetuning)
        )
        > 0
    )
    (bound,) = found.budget
    assert bound.smallest < bound.high < bound.largest
    assert (config.model.checkpoint is None) == (found.notes == ())
    if name in PUBLISHED:
        full, pruned, free = PUBLISHED[name]
        scale = SIZE**-2 if config.data.name == "imagenet" else 1
        assert scale * found.macs / 1e6 == pytest.approx(full, rel=0.02)
        assert found.free == free
        assert bound.high / found.macs == pytest.approx(pruned / full, abs=0.012)
        assert bound.low <= bound.high * 1.0001
        assert all(str(Path("weights").absolute()) in note for note in found.notes[:1])


@pytest.mark.parametrize("folder", sorted({Path(name).parent for name in PUBLISHED}))
def test_a_readme_lists_its_configs_and_what_was_published(folder):
    text = (ROOT / folder / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| \[(\w+)\]\(\w+\.toml\) \| (.*) \|$", text, flags=re.MULTILINE))
    assert set(rows) == {Path(name).stem for name in PUBLISHED if Path(name).parent == folder}
    assert "abcsearch search experiments/" in text
    for stem, row in rows.items():
        first = (ROOT / folder / f"{stem}.toml").read_text(encoding="utf-8").splitlines()[0]
        for figure in re.findall(r"\d+\.\d+", first.split("Published:")[1]):
            assert figure in row, (stem, figure)


def test_the_searchers_of_the_papers_are_used():
    used = {folder: set() for folder in {Path(name).parts[0] for name in PUBLISHED}}
    for name in PUBLISHED:
        used[Path(name).parts[0]].add(read_config(CONFIGS[name]).searcher.name)
    assert used == {
        "abcpruner": {"bee_colony"},
        "amc": {"ddpg"},
        "autoslim": {"greedy"},
        "dmcp": {"given"},
        "eagleeye": {"random"},
        "metapruning": {"evolution"},
        "network_adjustment": {"network_adjustment"},
        "tas": {"given"},
    }
    prepared = {
        name: None if made is None else made.name
        for name in PUBLISHED
        for made in [read_config(CONFIGS[name]).prepare]
    }
    wanted = {"autoslim": "slimmable", "dmcp": "dmcp", "metapruning": "pruning_net", "tas": "tas"}
    assert prepared == {name: wanted.get(Path(name).parts[0]) for name in PUBLISHED}
    assert {name for names in used.values() for name in names} <= set(SEARCHERS)
