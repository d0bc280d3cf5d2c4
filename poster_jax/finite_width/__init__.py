"""How do networks of finite width differ from the kernels of infinite ones?

`feynman`: how correlation functions of a network and its derivatives fall with width.
`nongaussian`: the prior of a random network to order 1/n, layer by layer, and Bayesian inference
with it.

Posters: "Asymptotics of Wide Networks from Feynman Diagrams", Dyer & Gur-Ari, NeurIPS 2019 workshop
(arXiv 1909.11304); "Non-Gaussian processes and neural networks at finite widths", Yaida, NeurIPS
2019 workshop (arXiv 1910.00019).
"""

from poster_jax.finite_width import feynman, nongaussian

__all__ = ["feynman", "nongaussian"]
