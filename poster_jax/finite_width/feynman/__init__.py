"""How do correlation functions of a network and its derivatives fall with its width?

A correlator is declared, not coded: `correlator("f(x1) f(x2) df(x1).df(x2)")`. From the declaration
come the cluster graph and the conjectured bound C = O(n^s), s = n_e + n_o / 2 - m / 2; for deep
linear networks the exact polynomial in 1/n, diagram by diagram, and for one hidden layer with any
activation too; for every other network its value by Monte Carlo, without derivative tensors.

Poster: "Asymptotics of Wide Networks from Feynman Diagrams", Dyer and Gur-Ari, NeurIPS 2019
workshop, arXiv 1909.11304.
"""

from poster_jax.finite_width.feynman.correlator import ClusterGraph, Correlator, correlator
from poster_jax.finite_width.feynman.diagrams import Diagram, automorphisms, diagrams
from poster_jax.finite_width.feynman.drawing import draw
from poster_jax.finite_width.feynman.dynamics import FirstOrderDynamics, first_order_dynamics
from poster_jax.finite_width.feynman.exponent import VERDICTS, Exponent, fit_exponent
from poster_jax.finite_width.feynman.hierarchy import Hierarchy, hierarchy, hierarchy_fn
from poster_jax.finite_width.feynman.linear import linear_polynomial
from poster_jax.finite_width.feynman.measure import (
    Measurement,
    measure,
    measure_all,
    measurement_from_samples,
)
from poster_jax.finite_width.feynman.networks import WidthNetwork, deep_network
from poster_jax.finite_width.feynman.one_layer import one_layer_polynomial
from poster_jax.finite_width.feynman.polynomial import Polynomial

__all__ = [
    "VERDICTS",
    "ClusterGraph",
    "Correlator",
    "Diagram",
    "Exponent",
    "FirstOrderDynamics",
    "Hierarchy",
    "Measurement",
    "Polynomial",
    "WidthNetwork",
    "automorphisms",
    "correlator",
    "deep_network",
    "diagrams",
    "draw",
    "first_order_dynamics",
    "fit_exponent",
    "hierarchy",
    "hierarchy_fn",
    "linear_polynomial",
    "measure",
    "measure_all",
    "measurement_from_samples",
    "one_layer_polynomial",
]
