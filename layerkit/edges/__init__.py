"""Floor 2: one outside thing each (disk, network, subprocess, engine)."""
