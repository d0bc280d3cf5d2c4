"""Resizing agrees with torch; copies of an example are augmented one by one."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poster_jax.mixed_sizes import augment_duplicates, resize_batch

FIGURES = np.load(pathlib.Path(__file__).parents[1] / "oracles" / "resize_figures.npz")
SIZES = (3, 6, 8, 12, 20)
WAYS = {
    "antialias": {},
    "plain": {"antialias": False},
    "nearest": {"method": "nearest"},
}


def test_every_size_is_that_of_torch():
    images = jnp.asarray(FIGURES["images"], jnp.float32)
    found = jax.jit(
        lambda x: {f"{w}/{s}": resize_batch(x, s, **WAYS[w]) for w in WAYS for s in SIZES}
    )(images)
    for name, result in found.items():
        if name.startswith("nearest"):
            np.testing.assert_array_equal(result, FIGURES[name].astype(np.float32), name)
        else:
            np.testing.assert_allclose(result, FIGURES[name], atol=2e-6, err_msg=name)


def test_images_of_that_size_already_are_left_alone():
    images = jnp.asarray(FIGURES["images"], jnp.float32)
    assert resize_batch(images, 8) is images
    with pytest.raises(ValueError, match="images must be of shape"):
        resize_batch(images[0], 4)


def test_copies_are_augmented_one_by_one_and_keep_their_label():
    @jax.jit
    def copies(key):
        return augment_duplicates(
            key,
            jnp.arange(5.0) * 10,
            jnp.arange(5),
            duplicates=4,
            augment=lambda key, x: x + jax.random.uniform(key),
        )

    images, labels = copies(jax.random.key(0))
    np.testing.assert_array_equal(labels, np.repeat(np.arange(5), 4))
    np.testing.assert_array_equal(np.floor(images / 10), labels)
    assert len(np.unique(np.asarray(images) % 10)) == 20
