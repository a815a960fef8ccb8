"""Floor 1: pure formats, bytes <-> values. No I/O, no clock, no randomness, no environment."""
