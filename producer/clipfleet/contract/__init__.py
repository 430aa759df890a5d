"""Pure data that both sides agree on: no I/O, no import but of the errors."""
