"""What CURL enlarges small data by, drawn for every image of a batch."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abcsearch.data.split import Split
from abcsearch.errors import ConfigError
from abcsearch.training import jigsaw
from abcsearch.training.loop import train
from abcsearch.training.mixing import augmented, check_mixing
from abcsearch.training.recipe import PRESETS, Recipe


def image(seed, *shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) + 1


@given(st.integers(2, 4), st.integers(4, 13), st.integers(4, 13), st.integers(0, 999))
def test_tiles_change_places_and_no_pixel_is_lost(side, height, width, seed):
    before = image(seed, 2, height, width)
    order = torch.randperm(side**2, generator=torch.Generator().manual_seed(seed))
    after = jigsaw.shuffled_tiles(before, order)
    assert torch.equal(after.flatten(1).sort(dim=1).values, before.flatten(1).sort(dim=1).values)
    high, wide = height // side, width // side
    for place in range(side**2):
        (row, column), (y, x) = divmod(place, side), divmod(int(order[place]), side)
        source = before[:, y * high : (y + 1) * high, x * wide : (x + 1) * wide]
        assert torch.equal(
            after[:, row * high : (row + 1) * high, column * wide : (column + 1) * wide], source
        )
    assert torch.equal(jigsaw.shuffled_tiles(before, torch.arange(side**2)), before)


@given(st.lists(st.floats(0, 0.9999), min_size=3, max_size=3))
def test_a_square_is_blanked_inside_of_the_image(draws):
    after = jigsaw.blanked(image(0, 3, 30, 40), torch.tensor(draws))
    blank = after[0] == 0
    rows, columns = blank.any(dim=1).sum(), blank.any(dim=0).sum()
    assert int(blank.sum()) == rows * columns
    assert rows == columns
    assert 8 <= rows <= 20


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 6, 12)])
def test_a_turned_image_is_turned(shape):
    before = image(0, *shape)
    torch.testing.assert_close(jigsaw.turned(before, 0.0), before)
    torch.testing.assert_close(
        jigsaw.turned(before, 180.0), before.rot90(2, (1, 2)), rtol=0, atol=1e-4
    )
    quarter = jigsaw.turned(before, 90.0)
    if shape[1] == shape[2]:
        ways = [before.rot90(way, (1, 2)) for way in (1, 3)]
        assert any(torch.allclose(quarter, way, atol=1e-4) for way in ways)
    else:  # what is in the middle stays there, as large as it was
        middle = quarter[:, :, 3:9]
        assert (middle > 0).all()
        assert any(
            torch.allclose(middle, before[:, :, 3:9].rot90(way, (1, 2)), atol=1e-4)
            for way in (1, 3)
        )


def test_a_share_of_the_images_is_changed_as_often_in_every_way():
    images = image(0, 400, 1, 12, 12)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert torch.equal(jigsaw.changed(images, 0.0), images)
        some = jigsaw.changed(images, 5 / 6)
        assert jigsaw.changed(images, 1.0).is_contiguous(memory_format=torch.channels_last)
    same = (some == images).flatten(1).all(dim=1)
    assert 0.1 < same.float().mean() < 0.24
    blank = (some == 0).flatten(1).any(dim=1)
    assert 0.25 < blank.float().mean() < 0.42  # two of six: blanked or turned


def test_a_recipe_with_it_trains_alike_twice_and_refuses_maps(tiny_data, tiny_model):
    recipe = Recipe(epochs=1, batch_size=32, lr=0.01, jigsaw=5 / 6, mixup=1.0)
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    losses = []
    for _ in range(2):
        tiny_model.load_state_dict(before)
        losses.append(train(tiny_model, tiny_data.train, recipe).losses)
    tiny_model.load_state_dict(before)
    assert (
        losses[0]
        == losses[1]
        != train(tiny_model, tiny_data.train, Recipe(epochs=1, batch_size=32, lr=0.01)).losses
    )
    split, change = augmented(recipe, tiny_data.train)
    assert split is tiny_data.train
    assert change is not None
    masks = Split(
        tiny_data.train.images, torch.zeros(len(tiny_data.train), 6, 6, dtype=torch.int64)
    )
    with pytest.raises(
        ConfigError,
        match="jigsaw moves images, not labels of pixels or boxes with them; set it to 0",
    ):
        check_mixing(Recipe(jigsaw=0.5), masks, "segmentation")
    signals = Split(torch.rand(4, 1, 9), torch.arange(4))
    with pytest.raises(
        ConfigError, match=r"jigsaw: for images of height and width, found \(1, 9\)"
    ):
        check_mixing(Recipe(jigsaw=0.5), signals, "classification")


def test_the_preset_is_curls():
    recipe = PRESETS["small_data"].recipe
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.weight_decay) == (
        200,
        32,
        0.01,
        4e-5,
    )
    assert (recipe.mixup, recipe.distillation, recipe.temperature, recipe.jigsaw) == (
        1,
        0.7,
        2,
        5 / 6,
    )
    assert (recipe.schedule, recipe.optimizer, recipe.nesterov) == ("cosine", "sgd", False)
