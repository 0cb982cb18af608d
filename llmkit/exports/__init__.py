"""Exports: one file each."""
