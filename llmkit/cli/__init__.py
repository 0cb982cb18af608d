"""The door: one thin function per verb."""
