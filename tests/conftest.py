"""Run every test with checked shapes: jaxtyping annotations are enforced by beartype."""

from jaxtyping import install_import_hook

install_import_hook("perceivers", "beartype.beartype")
