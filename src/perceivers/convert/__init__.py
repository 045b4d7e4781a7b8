"""Published weights to ours."""
