"""From logits to tokens, from a prompt to a continuation."""
