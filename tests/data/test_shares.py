"""Workers' shares of a batch are parts of the very same batch; splits remember how their images were made."""

import pickle

import pytest
import torch
from torch.utils.data import TensorDataset

from abcsearch.data.scale import Scale
from abcsearch.data.split import Split
from abcsearch.data.stream import Stream

SCALE = Scale(mean=(0.5,), std=(0.25,))
PIXELS = torch.randint(
    0, 256, (50, 1, 5, 5), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
)
FLOATS = SCALE.apply(PIXELS.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
LABELS = torch.arange(50) % 5
IMAGES = {
    "split": Split(FLOATS, LABELS, SCALE),
    "stream": Stream(source=TensorDataset(PIXELS, LABELS), labels=LABELS, scale=SCALE, workers=0),
    "maps": Split(FLOATS, (PIXELS[:, 0] > 128).long(), SCALE),
}


def epochs(images, **options):
    draws = torch.Generator().manual_seed(3)
    return [
        batch
        for _ in range(2)
        for batch in images.shuffled(12, draws, shift=1, flip=True, **options)
    ]


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("count", [2, 3, 12])
def test_shares_together_are_the_batches_of_one_process(name, count):
    whole = epochs(IMAGES[name])
    parts = [epochs(IMAGES[name], share=(number, count)) for number in range(count)]
    assert len(whole) == 8
    for (images, labels), *own in zip(whole, *parts, strict=True):
        assert all(len(part[0]) == 12 // count for part in own)
        assert torch.equal(torch.cat([part[0] for part in own]), images)
        assert torch.equal(torch.cat([part[1] for part in own]), labels)


def test_undoing_a_normalisation_gives_the_values_back():
    rows = PIXELS.permute(0, 2, 3, 1)
    torch.testing.assert_close(SCALE.undo(SCALE.apply(rows)), rows / 255)
    assert torch.equal(Scale().undo(rows / 255), rows / 255)


def test_a_split_remembers_its_normalisation():
    split = IMAGES["split"]
    found = [split.part(torch.tensor([3, 1])), split.to("meta"), pickle.loads(pickle.dumps(split))]
    assert [own.scale for own in [*found, IMAGES["stream"].loaded()]] == [SCALE] * 4
    floats = Stream(source=TensorDataset(PIXELS.float(), LABELS), labels=LABELS, workers=0)
    assert floats.loaded().scale is None
