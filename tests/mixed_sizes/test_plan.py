"""An epoch shows every example at most once, each size its share, in an order of its key."""

import jax
import numpy as np
import pytest

from poster_jax.mixed_sizes import CIFAR, epoch_plan, epoch_steps, size_regime

REGIME = size_regime(**CIFAR._asdict(), adapt="duplicates")
EXAMPLES = 1203
PLAN = jax.jit(lambda key: epoch_plan(key, EXAMPLES, REGIME))


def test_cifar_has_the_steps_of_the_authors():
    assert epoch_steps(50_000, REGIME) == (234, 357, 234, 156)


def test_every_example_is_seen_at_most_once_and_every_size_gets_its_share():
    plan = PLAN(jax.random.key(0))
    seen = np.concatenate([np.ravel(table) for table in plan.tables])
    assert len(np.unique(seen)) == len(seen)
    assert seen.min() >= 0
    assert seen.max() < EXAMPLES
    parts = [360, 240, 360, 243]
    for index, (table, part, config) in enumerate(zip(plan.tables, parts, REGIME, strict=True)):
        assert 0 <= part - table.size < config.batch_size
        rows = np.asarray(plan.row)[np.asarray(plan.size_index) == index]
        assert sorted(rows) == list(range(len(table)))


def test_the_key_is_the_plan():
    first, again, other = (PLAN(jax.random.key(seed)) for seed in (0, 0, 1))
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (np.asarray(first.size_index) != np.asarray(other.size_index)).any()
    assert (np.asarray(first.tables[0]) != np.asarray(other.tables[0])).any()


def test_examples_change_their_size_from_epoch_to_epoch():
    plans = jax.jit(jax.vmap(lambda key: epoch_plan(key, EXAMPLES, REGIME)))(
        jax.random.split(jax.random.key(2), 400)
    )
    # Index 0 is at size 32 in 320 of 1203 epochs: five full batches of 64 a plan.
    share = np.mean([(np.asarray(plans.tables[0][e]) == 0).any() for e in range(400)])
    assert abs(share - 320 / EXAMPLES) < 5 * np.sqrt(0.266 * 0.734 / 400)


def test_too_few_examples_are_refused():
    with pytest.raises(ValueError, match="fill a batch of 64 at size 32"):
        epoch_steps(100, REGIME)
