"""Every public function of the room says what it takes, gives, raises and comes from."""

import inspect

import pytest

from poster_jax.finite_width import feynman

FUNCTIONS = [getattr(feynman, name) for name in feynman.__all__]


@pytest.mark.parametrize("function", [f for f in FUNCTIONS if inspect.isfunction(f)])
def test_public_functions_are_documented(function):
    text = inspect.getdoc(function) or ""
    for part in ("Args:", "Returns:", "Raises:", "Source:", "Example"):
        assert part in text, f"{function.__name__} lacks {part}"
