"""Quantizations: one file each."""
