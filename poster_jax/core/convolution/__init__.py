"""One convolution for every backend, fast inside loops and under `vmap` on the CPU as well.

`conv_general_dilated` takes the arguments of `jax.lax.conv_general_dilated`; Flax takes it through
`nn.Conv(conv_general_dilated=...)`. `with_fast_convolutions` puts it under models that cannot be
told so. XLA's own convolution stays where it is the better one (GPU, TPU); the choice is made in
one place, `drop_in.py`, which also says why.
"""

from poster_jax.core.convolution.drop_in import conv_general_dilated
from poster_jax.core.convolution.rewrite import with_fast_convolutions

__all__ = ["conv_general_dilated", "with_fast_convolutions"]
