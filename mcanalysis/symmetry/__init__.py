"""Permutations of hidden units: equal networks in other coordinates, and the coordinates in which two nets are closest.

For LoRA adapters, whose hidden coordinates may be turned by any invertible matrix, see the space `aligned` of
`mcanalysis.params`.
"""

from mcanalysis.symmetry.mlp import mlp_spec
from mcanalysis.symmetry.permutation_spec import Permutations, PermutationSpec, invert, permute, random_permutations
from mcanalysis.symmetry.transformer import transformer_mlp_spec
from mcanalysis.symmetry.weight_matching import match_weights, matching_objective

__all__ = [
    "PermutationSpec",
    "Permutations",
    "invert",
    "match_weights",
    "matching_objective",
    "mlp_spec",
    "permute",
    "random_permutations",
    "transformer_mlp_spec",
]
