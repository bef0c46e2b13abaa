"""Keeps secrets out of what is written down: logs, the run folder, reports.

A secret is the value of an environment variable whose name says so, and whatever looks like a Hugging Face token. Knows
nothing of where texts go.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import TextIO
from urllib.parse import quote

__all__ = ["Redacting", "names_a_secret", "redacted"]

_NAMES = re.compile(r"TOKEN|SECRET|PASSW|PASSPHRASE|(API|ACCESS|PRIVATE)_?KEY|CREDENTIAL", re.IGNORECASE)
_HUB_TOKEN = re.compile(r"(?<![A-Za-z0-9])hf_(oauth_|jwt_)?[A-Za-z0-9]{16,}(?:[\w.-]*\w)?")
_SHORTEST = 8  # anything shorter, such as `true`, is a setting and no secret


def names_a_secret(name: str) -> bool:
    """Whether the value of an environment variable of this name is kept out of texts."""
    return _NAMES.search(name) is not None


def redacted(text: str) -> str:
    """A text without secrets: each is replaced by the name of its variable, in brackets."""
    for written, name in sorted(_secrets(), key=lambda pair: -len(pair[0])):
        text = text.replace(written, f"[{name}]")
    return _HUB_TOKEN.sub("[hub token]", text)


def _secrets() -> Iterator[tuple[str, str]]:
    """Every secret of the environment, as texts may show it, and the name of its variable."""
    for name, value in os.environ.items():
        secret = value.strip()  # files that keys are read from end with a newline
        if len(secret) >= _SHORTEST and names_a_secret(name):
            for written in {secret, repr(secret)[1:-1], quote(secret, safe="")}:
                yield written, name


class Redacting:
    """A text file that secrets do not get into. Looks at each write by itself, as loggers and `print` make them.

    Args:
        file: where the rest goes.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> int:
        """Takes a text, and says that all of it was written."""
        self._file.write(redacted(text))
        return len(text)

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)
