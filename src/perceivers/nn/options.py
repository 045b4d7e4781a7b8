"""Choices that several families have, by name. Imports no torch."""

import difflib
from typing import Literal, get_args

ActivationName = Literal[
    "sq_relu",
    "relu",
    "relu6",
    "leaky_relu",
    "elu",
    "celu",
    "selu",
    "gelu",
    "gelu_tanh",
    "silu",
    "swish",
    "mish",
    "softplus",
    "squareplus",
    "soft_sign",
    "sigmoid",
    "log_sigmoid",
    "tanh",
    "hard_sigmoid",
    "hard_swish",
    "hard_silu",
    "hard_tanh",
    "sparse_plus",
    "sparse_sigmoid",
    "identity",
]
"""Those of `jax.nn`, by its names, with two exceptions: `gelu` is exact and `gelu_tanh` its approximation, which
`jax.nn.gelu` is; `sq_relu` is relu squared. `nn.activations` computes them."""
BackendName = Literal["auto", "reference", "sdpa", "flex"]


def check_activation(name: str) -> None:
    """Refuse an activation that is not built.

    Raises:
        ValueError: Lists those that are.
    """
    known = get_args(ActivationName)
    if name not in known:
        close = difflib.get_close_matches(str(name), known, 1)
        meant = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"activation={name!r} is not built{meant}: choose one of {', '.join(known)}")
