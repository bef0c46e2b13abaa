"""Writes the reference from the code: commands, keys of experiment files, merge operators, the Python API.

`make reference` runs it; a test compares what it gives with what is there.
"""

from __future__ import annotations

import sys
from pathlib import Path

from reference_api import api
from reference_commands import commands
from reference_keys import keys
from reference_operators import operators

MADE = "<!-- Made by `make reference`; do not edit. -->\n\n"
PAGES = {"cli.md": commands, "yaml.md": keys, "operators.md": operators, "python.md": api}

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(exist_ok=True)
    for name, lines in PAGES.items():
        (folder / name).write_text(MADE + "\n".join(lines()).rstrip() + "\n", encoding="utf-8")
