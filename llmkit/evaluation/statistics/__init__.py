"""How sure a score is, whether base and tuned model differ, and gates that are decided by that."""
