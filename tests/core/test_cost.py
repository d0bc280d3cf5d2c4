"""The count of operations against counts by hand."""

import jax
import jax.numpy as jnp

from poster_jax.core.convolution import conv_general_dilated, with_fast_convolutions
from poster_jax.core.cost import count_flops


def test_products_loops_and_branches():
    a = jnp.ones((3, 4))
    assert count_flops(lambda a: a @ a.T, a) == 2 * 3 * 3 * 4
    scan = lambda a: jax.lax.scan(lambda c, _: (c @ c.T @ c, None), a, None, 5)[0]  # noqa: E731
    assert count_flops(scan, a) == 5 * (2 * 9 * 4 + 2 * 12 * 3)


def test_a_convolution_costs_the_same_whichever_way_it_is_computed():
    image, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 5))
    by_hand = 2 * (2 * 64 * 5) * (9 * 3)
    arguments = {"window_strides": (1, 1), "padding": "SAME"}
    arguments["dimension_numbers"] = ("NHWC", "HWIO", "NHWC")
    plain = lambda x, w: jax.lax.conv_general_dilated(x, w, **arguments)  # noqa: E731
    assert count_flops(plain, image, kernel) == by_hand
    if jax.default_backend() == "cpu":  # elsewhere XLA's own is taken
        ours = count_flops(lambda x, w: conv_general_dilated(x, w, **arguments), image, kernel)
        assert by_hand <= ours < 1.2 * by_hand
        rewritten = with_fast_convolutions(plain)
        gradient = jax.grad(lambda x, w: jnp.sum(rewritten(x, w)), argnums=1)
        assert 2 * by_hand <= count_flops(gradient, image, kernel) < 2.4 * by_hand


def test_a_convolution_in_groups_counts_four_times():
    image, kernel = jnp.ones((2, 8, 8, 6)), jnp.ones((3, 3, 3, 10))
    grouped = lambda x, w: jax.lax.conv_general_dilated(  # noqa: E731
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=2
    )
    assert count_flops(grouped, image, kernel) == 4 * 2 * (2 * 64 * 10) * (9 * 3)
