"""Families: one paper, one file."""
