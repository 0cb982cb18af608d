"""The straight line from a recipe to a run folder."""
