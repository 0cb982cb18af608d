"""Rows in, audited examples out."""
