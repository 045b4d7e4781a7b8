"""Choices that several families have, by name. Imports no torch."""

from typing import Literal

ActivationName = Literal["sq_relu", "gelu_tanh", "gelu", "relu", "silu"]
BackendName = Literal["auto", "reference", "sdpa", "flex"]
