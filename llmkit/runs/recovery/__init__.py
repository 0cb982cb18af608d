"""How a run goes on after it was interrupted: checkpoints that are whole, and a resume that is exact."""
