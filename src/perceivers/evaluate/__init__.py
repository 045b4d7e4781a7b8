"""Likelihood of held-out data, and the baselines it is compared with."""
