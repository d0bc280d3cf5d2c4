"""Inputs and names that the tests share."""

import numpy as np
import pytest


@pytest.fixture
def inputs(x64):
    """Three inputs in general position, float64."""
    return np.random.default_rng(3).normal(size=(3, 4))


@pytest.fixture
def covariance():
    """A covariance of three outputs, variances near 1."""
    factor = np.random.default_rng(5).normal(size=(3, 5))
    return 0.7 * factor @ factor.T / 5 + 0.2
