"""COCO's format, from a tiny folder in the real layout."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from abcsearch.data.boxes import unpacked
from abcsearch.data.registry import load_data
from abcsearch.errors import DataError

CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 3, "name": "car", "supercategory": "vehicle"}]


def write(root, split, count=6, **changes):
    """Writes images, 20 wide and 10 high, and their file; `changes` replace or remove (None) entries of it."""
    draws = np.random.default_rng(len(split))
    (root / split).mkdir(parents=True, exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    entries, annotations = [], []
    for number in range(count):
        name = f"{number:012}.png"
        Image.fromarray(draws.integers(0, 256, (10, 20, 3), dtype=np.uint8)).save(
            root / split / name
        )
        entries.append(
            {"id": 100 + number, "file_name": name, "width": 20, "height": 10, "license": 1}
        )
        if number % 3:
            box = {
                "id": number,
                "image_id": 100 + number,
                "category_id": 3,
                "bbox": [2, 1, 8.0, 4],
                "iscrowd": 0,
            }
            annotations.append({**box, "area": 32.0, "segmentation": [[]]})
    content = {"info": {}, "images": entries, "annotations": annotations, "categories": CATEGORIES}
    content = {name: value for name, value in {**content, **changes}.items() if value is not None}
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return content


@pytest.fixture
def folder(tmp_path):
    for split in ("train2017", "val2017"):
        write(tmp_path, split)
    return tmp_path


def load(folder, **options):
    return load_data(
        "coco", **{"path": str(folder), "size": 40, "validation": 3, "workers": 0, **options}
    )


def test_images_and_boxes_are_resized_together(folder):
    data = load(folder)
    assert data.test.shape == (3, 40, 40)
    targets = unpacked(data.test.labels)
    # 3 comes before 18
    assert [own["labels"].tolist() for own in targets] == [[], [1], [1], [], [1], [1]]
    assert targets[1]["boxes"].tolist() == [[4.0, 4.0, 20.0, 20.0]]
    assert (len(data.train), len(data.validation), data.objective) == (3, 3, "detection")
    in_memory = load(folder, stream=False)
    assert torch.equal(in_memory.test.images, data.test.loaded().images)
    assert torch.equal(in_memory.train.labels, data.train.labels)
    assert "val2017/000000000001.png" in data.test.where(1)


def test_crowds_and_edges(folder):
    every = [
        {"image_id": 100, "category_id": 18, "bbox": [-3, -2, 6, 4], "iscrowd": 1},  # over an edge
        {"image_id": 100, "category_id": 18, "bbox": [5, 5, 0, 3]},  # empty, as some of COCO's are
        {"image_id": 101, "category_id": 3, "bbox": [18, 8, 10, 10]},
    ]
    write(folder, "val2017", annotations=every)
    first, second, *_ = unpacked(load(folder).test.labels)
    assert first["boxes"].tolist() == [[0.0, 0.0, 6.0, 8.0]]
    assert (first["labels"].tolist(), first["iscrowd"].tolist()) == ([2], [1])
    assert second["boxes"].tolist() == [[36.0, 32.0, 40.0, 40.0]]


BOX = {"image_id": 101, "category_id": 3, "bbox": [1, 1, 2, 2]}
IMAGE = {"id": 1, "file_name": "a.png", "width": 2, "height": 2}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images": None}, "images is a list, found nothing; it should be a file of COCO's format"),
        ({"images": {}}, "images is a list, found dict"),
        ({"images": []}, "entries of images and of categories are in .*, found 0 and 2"),
        ({"categories": []}, "found 6 and 0"),
        ({"annotations": [3]}, "annotations: number 0 .* image_id is missing"),
        ({"annotations": [{"image_id": 101, "category_id": 3}]}, "bbox is missing"),
        (
            {"annotations": [{**BOX, "image_id": 7}]},
            "number 0 .* is of image 7 and category 3, one of which is not in",
        ),
        ({"annotations": [{**BOX, "category_id": 7}]}, "category 7"),
        ({"annotations": [{**BOX, "bbox": [1, 1, -2, 2]}]}, "the last two at least 0"),
        ({"annotations": [{**BOX, "bbox": [1, 1, 2]}]}, "bbox is x, y, width, height"),
        ({"annotations": [{**BOX, "bbox": [1, 1, 2, "2"]}]}, "bbox is x, y, width, height"),
        (
            {"annotations": [{**BOX, "bbox": [1, 1, 2, float("nan")]}]},
            "bbox is x, y, width, height",
        ),
        ({"images": [{**IMAGE, "id": "1"}]}, "id is a whole number, found '1'"),
        ({"images": [{**IMAGE, "file_name": "../../a.png"}], "annotations": []}, "is a path below"),
        ({"images": [{**IMAGE, "file_name": "/a.png"}], "annotations": []}, "is a path below"),
        ({"images": [{**IMAGE, "width": 0}], "annotations": []}, "width and height are pixels"),
        ({"categories": [{"id": 3, "name": "car"}]}, r"different categories: \[\(18, 'dog'\)\]"),
    ],
)
def test_files_of_another_format_are_refused(folder, changes, said):
    write(folder, "val2017", **changes)
    with pytest.raises(DataError, match=f"(?s){said}"):
        load(folder)


def test_missing_damaged_and_other_files_are_named(folder):
    file = folder / "annotations" / "instances_val2017.json"
    for text, said in (
        ("{", "damaged, or no JSON"),
        ("[]", "is a table with images, annotations"),
        ("\xff", "damaged"),
    ):
        file.write_text(text, encoding="latin1")
        with pytest.raises(DataError, match=f"instances_val2017.json.*{said}"):
            load(folder)
    file.unlink()
    with pytest.raises(DataError, match=r"instances_val2017.json is missing"):
        load(folder)
    with pytest.raises(DataError, match="size is the height and width"):
        load(folder, size=0)
    write(folder, "val2017")
    Image.new("RGB", (10, 10)).save(folder / "val2017" / "000000000004.png")
    with pytest.raises(
        DataError,
        match=r"000000000004.png cannot be read: it is 10 wide and 10 high, .* says 20 and 10",
    ):
        load(folder).test.loaded()
