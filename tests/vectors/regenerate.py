"""Write the golden vectors anew from tests/vector_cases.py. A test checks that nothing changes."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from vector_cases import FOLDER, cases

if __name__ == "__main__":
    for case in cases():
        path = FOLDER / case.path
        path.parent.mkdir(exist_ok=True)
        path.write_text(case.text)
