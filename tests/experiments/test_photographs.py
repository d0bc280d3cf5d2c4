"""Views of photographs against PIL, and the law that random ones are drawn by."""

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from scipy import stats

from experiments import _photographs as photographs

SIDE = 40


def _image():
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (5, 5, 3)).astype(np.uint8)
    return np.asarray(
        PIL.Image.fromarray(coarse).resize((SIDE, SIDE), PIL.Image.Resampling.BICUBIC)
    )


def _pil(image, top, left, height, width, size):
    box = tuple(SIDE * v for v in (left, top, left + width, top + height))
    resized = PIL.Image.fromarray(image).resize((size, size), PIL.Image.Resampling.BILINEAR, box)
    return (np.asarray(resized, np.float64) / 255 - photographs.MEAN) / photographs.STD


@pytest.mark.parametrize("size", [12, 56])
def test_a_part_is_cut_and_resized_as_by_pil(size):
    image, (top, left, height, width) = _image(), (0.1, 0.3, 0.8, 0.5)
    ends = jnp.array([[top, left], [height, width]])
    got = jax.jit(photographs.cut, static_argnums=3)(jnp.asarray(image), *ends, size)
    want = _pil(image, top, left, height, width, size)
    inner = slice(size // 8, -(size // 8))  # PIL sees nothing beyond the part
    # PIL rounds twice to bytes, of which 57 are a standard deviation.
    np.testing.assert_allclose(got[inner, inner], want[inner, inner], atol=0.03)
    centre = photographs.centres(jnp.asarray(image)[None], size)[0]
    want = _pil(image, 1 / 16, 1 / 16, 7 / 8, 7 / 8, size)
    np.testing.assert_allclose(centre[inner, inner], want[inner, inner], atol=0.03)


def test_random_parts_have_the_law_of_inception():
    """Areas and shapes, found again from a picture whose colours are its coordinates."""
    ramp = np.zeros((SIDE, SIDE, 3), np.float32)
    ramp[..., 0], ramp[..., 1] = np.mgrid[:SIDE, :SIDE] + 0.5
    many = jnp.broadcast_to(jnp.asarray(ramp), (2000, SIDE, SIDE, 3))
    views = jax.jit(photographs.random_views, static_argnums=2)(many, jax.random.key(0), 16)
    places = (np.asarray(views) * photographs.STD + photographs.MEAN) * 255 / SIDE
    # Away from the border, where a wider average is cut off.
    rows, columns = places[:, 4:12, 8, 0], places[:, 8, 4:12, 1]
    height, width = (2 * (a[:, 4:].mean(1) - a[:, :4].mean(1)) * 2 for a in (rows, columns))
    mirrored = width < 0
    assert 900 < mirrored.sum() < 1100  # 4.5 standard deviations of 2,000 coins
    width, area = abs(width), height * abs(width)
    # Those that fit whatever their shape: area below 3/4.
    small = area[area < 0.74]
    assert stats.kstest(small, stats.uniform(0.08, 0.66).cdf).pvalue > 1e-3
    ratio = np.log(width / height)[area < 0.74] / np.log(4 / 3)
    assert stats.kstest(ratio, stats.uniform(-1, 2).cdf).pvalue > 1e-3
    middle = rows.mean(1)
    assert (middle - height / 2 > -1e-3).all()
    assert (middle + height / 2 < 1 + 1e-3).all()
