"""Moved and mirrored images against windows cut by numpy; the loss that sees them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import _augment
from poster_jax.core import training


@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_a_moved_image_is_a_window_of_the_padded_one_and_half_are_flipped(mode, key):
    x = 1 + jnp.arange(200 * 144.0).reshape(200, 12, 12, 1)
    moved = np.asarray(jax.jit(lambda x, key: _augment.crop_and_flip(x, key, mode=mode))(x, key))
    wide = np.pad(np.asarray(x), [(0, 0), (4, 4), (4, 4), (0, 0)], mode)
    flipped, places = 0, set()
    for image, source in zip(moved, wide, strict=True):
        windows = {(i, j): source[i : i + 12, j : j + 12] for i in range(9) for j in range(9)}
        plain = [at for at, window in windows.items() if np.array_equal(image, window)]
        other = [at for at, window in windows.items() if np.array_equal(image[:, ::-1], window)]
        assert plain or other
        flipped += not plain
        places |= set(plain or other)
    assert {place[0] for place in places} == {place[1] for place in places} == set(range(9))
    assert 70 < flipped < 130  # of 200 draws of 1/2: four standard deviations


def test_the_loss_sees_other_images_at_every_step_and_the_same_labels(key):
    x, y = jax.random.normal(key, (64, 6, 6, 1)), jnp.arange(64)
    seen = training.stateful(lambda params, state, batch, key: (jnp.zeros(()), batch))
    fn = jax.jit(_augment.augmented(seen).fn)
    images = []
    for seed in (0, 1):
        _, (moved, labels) = fn((), (), (x, y), jax.random.key(seed))
        np.testing.assert_array_equal(labels, y)
        images.append(np.asarray(moved))
    same = (images[0] == images[1]).all((1, 2, 3)).mean()
    assert same < 0.2  # 162 ways to move an image
