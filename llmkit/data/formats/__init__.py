"""Row formats: one file each, with `SHAPE` and `convert(row)`."""
