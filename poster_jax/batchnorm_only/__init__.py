"""What can a network of random features learn by BatchNorm's gamma and beta alone?

`trains(params, "batchnorm")` names them for `core.training.partition`, `random_parameter_mask` as
many elsewhere; `batchnorm_sparsity` and `prune_features` say which features training has switched
off and what that costs. The networks are `core.models.ResNet`, to any depth with `scan=True`.

Poster: "Training BatchNorm and Only BatchNorm", Frankle, Schwab, Morcos, NeurIPS 2019 workshop
SEDL; arXiv 2003.00152.
"""

from poster_jax.batchnorm_only.groups import GROUPS, count_parameters, parameter_groups, trains
from poster_jax.batchnorm_only.random_masks import random_parameter_mask
from poster_jax.batchnorm_only.sparsity import (
    Sparsity,
    batchnorm_sparsity,
    dead_features,
    gammas,
    prune_features,
)

__all__ = [
    "GROUPS",
    "Sparsity",
    "batchnorm_sparsity",
    "count_parameters",
    "dead_features",
    "gammas",
    "parameter_groups",
    "prune_features",
    "random_parameter_mask",
    "trains",
]
