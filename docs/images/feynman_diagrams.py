"""Draws feynman_diagrams.png: python docs/images/feynman_diagrams.py (seconds on a CPU).

The diagrams of the squared tangent kernel of a linear network with two hidden layers.
"""

import pathlib

from poster_jax.finite_width import feynman

chosen = list(feynman.diagrams(feynman.correlator("(df.df)^2"), depth=2, up_to_symmetry=True))
chosen.sort(key=lambda diagram: (-diagram.exponent, diagram.genus))
figure = feynman.draw(chosen, labels=["df"] * 4, columns=5)
figure.savefig(pathlib.Path(__file__).with_suffix(".png"), metadata={"Software": None})
