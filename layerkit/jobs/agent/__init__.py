"""`layerkit agent`: a daemon on a node that watches names and keeps their newest versions.

`daemon` is its life, `watching` asks servers for news, `keeper` pulls and keeps, `worker` is what
runs in processes of its own, `names` is the durable record, `api` is what people may ask.
This module loads little: the parts that a job needs load in the job's process.
"""

from __future__ import annotations

from layerkit.jobs.agent.settings import Settings, load_settings

__all__ = ["Settings", "load_settings"]
