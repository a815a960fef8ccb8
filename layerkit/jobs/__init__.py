"""Floor 3: one user verb each, built from formats and edges."""
