"""Layers: attention, blocks, masks, positions."""
