"""layerkit: build Go functions as small OCI images and move only what changed to each node."""

__version__ = "0.1.0"
