"""How do networks of finite width differ from their infinite limit?

`feynman`: how correlation functions of a network and its derivatives fall with width.
"""

from poster_jax.finite_width import feynman

__all__ = ["feynman"]
