"""Layers that know their infinite-width kernel: `(init_fn, apply_fn, kernel_fn)`."""

from poster_jax.kernels.stax.attention import (
    AttentionMechanism,
    GlobalSelfAttention,
    PositionalEmbedding,
)
from poster_jax.kernels.stax.branching import FanInConcat, FanInProd, FanInSum, FanOut
from poster_jax.kernels.stax.combinators import parallel, repeat, serial
from poster_jax.kernels.stax.convolution import Conv, ConvLocal, ConvTranspose
from poster_jax.kernels.stax.dense import Dense, Identity
from poster_jax.kernels.stax.graph import Aggregate, AggregateImplementation
from poster_jax.kernels.stax.layer import layer
from poster_jax.kernels.stax.linear_maps import DotGeneral, ImageResize, Index, Slice
from poster_jax.kernels.stax.masking import MaskedArray, supports_masking, unmask_fn
from poster_jax.kernels.stax.modern import GEGLU, GroupedConv, RMSNorm, Silu, SwiGLU
from poster_jax.kernels.stax.normalization import Dropout, LayerNorm
from poster_jax.kernels.stax.numerical import Elementwise, ElementwiseNumerical
from poster_jax.kernels.stax.polynomial import Hermite, Monomial, Polynomial
from poster_jax.kernels.stax.pooling import (
    AvgPool,
    Flatten,
    GlobalAvgPool,
    GlobalSumPool,
    SumPool,
)
from poster_jax.kernels.stax.rectified import (
    ABRelu,
    Abs,
    LeakyRelu,
    RectifiedMonomial,
    Relu,
    Sign,
)
from poster_jax.kernels.stax.requirements import Bool, Diagonal, requires
from poster_jax.kernels.stax.smooth import (
    Cos,
    Erf,
    Exp,
    ExpNormalized,
    Gabor,
    Gaussian,
    Gelu,
    Rbf,
    Sigmoid_like,
    Sin,
)
from poster_jax.kernels.stax.windows import Padding

__all__ = [
    "GEGLU",
    "ABRelu",
    "Abs",
    "Aggregate",
    "AggregateImplementation",
    "AttentionMechanism",
    "AvgPool",
    "Bool",
    "Conv",
    "ConvLocal",
    "ConvTranspose",
    "Cos",
    "Dense",
    "Diagonal",
    "DotGeneral",
    "Dropout",
    "Elementwise",
    "ElementwiseNumerical",
    "Erf",
    "Exp",
    "ExpNormalized",
    "FanInConcat",
    "FanInProd",
    "FanInSum",
    "FanOut",
    "Flatten",
    "Gabor",
    "Gaussian",
    "Gelu",
    "GlobalAvgPool",
    "GlobalSelfAttention",
    "GlobalSumPool",
    "GroupedConv",
    "Hermite",
    "Identity",
    "ImageResize",
    "Index",
    "LayerNorm",
    "LeakyRelu",
    "MaskedArray",
    "Monomial",
    "Padding",
    "Polynomial",
    "PositionalEmbedding",
    "RMSNorm",
    "Rbf",
    "RectifiedMonomial",
    "Relu",
    "Sigmoid_like",
    "Sign",
    "Silu",
    "Sin",
    "Slice",
    "SumPool",
    "SwiGLU",
    "layer",
    "parallel",
    "repeat",
    "requires",
    "serial",
    "supports_masking",
    "unmask_fn",
]
