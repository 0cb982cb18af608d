"""Data sets that llmkit generates itself: one file each, with `rows(split)`."""
