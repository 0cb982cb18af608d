"""A run proves itself: it is still what it was, it can be run again, and what two runs differ in has a name."""
