"""Adapters: one file each."""
