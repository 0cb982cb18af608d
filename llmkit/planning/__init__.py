"""Hardware and the decisions that follow from it."""
