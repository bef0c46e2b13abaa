"""A server that speaks JSON over HTTP, asked one thing at a time. Knows nothing of models.

What the server says is data; that it cannot be reached ends the run, which goes on once it can. Every question has a
connection of its own, follows no redirects and goes through no proxy, so the key reaches nobody else.
"""

from __future__ import annotations

import http.client
import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final
from urllib.parse import urlsplit

from evomerge.errors import RunError

if TYPE_CHECKING:
    from evomerge.config import OpenaiConfig

__all__ = ["Client", "Reply"]

_PAUSES = (0.5, 2.0, 8.0)
"""Seconds before a server that is out of reach, or too busy, is asked again."""

_BUSY = (429, 502, 503, 504)


@final
@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answered.

    Attributes:
        status: HTTP's; 200 means that it did what it was asked.
        data: the answer, or what it said instead.
    """

    status: int
    data: Any

    @property
    def fault(self) -> str:
        """Why it refused, in its words, as one line."""
        said = self.data
        for key in ("error", "message", "detail"):
            said = said.get(key, said) if isinstance(said, dict) else said
        return f"{self.status}: {' '.join(str(said).split())[:500]}"


@final
class Client:
    """Asks one server.

    Args:
        config: its address, the key's variable, patience.

    Raises:
        RunError: the variable that should hold the key is not set, or holds none.
    """

    def __init__(self, config: OpenaiConfig) -> None:
        self.url, self._timeout = config.url, config.timeout_seconds
        self._headers = {"Content-Type": "application/json"}
        if config.api_key is not None:
            key = os.environ.get(config.api_key, "").strip()  # files that keys are read from end with a newline
            if not (key and key.isascii() and key.isprintable()):
                raise RunError(
                    f"engine.api_key: expected the server's key in the environment variable {config.api_key}; it is "
                    f"{'no line of ASCII text' if key else 'not set'}; export it where workers start"
                )
            self._headers["Authorization"] = f"Bearer {key}"

    def ask(self, path: str, body: Any = None) -> Reply:
        """Ask, and ask again for a few seconds if the server is out of reach.

        Args:
            path: behind the address, for example `/v1/models`.
            body: is posted as JSON; None asks for what is there.

        Raises:
            RunError: it is out of reach, too slow, or wants another key.
        """
        reply = self._patiently(path, body)
        if reply.status >= 500:  # the question is at fault only where the server itself is well
            self._patiently("/health", None)
        if reply.status in (401, 403):
            raise RunError(
                f"{self.url}: expected to be let in; got {reply.fault}; name the environment variable that holds the "
                "server's key as engine.api_key"
            )
        return reply

    def tell(self, path: str, body: Any) -> None:
        """Post something once, whatever comes of it."""
        with suppress(OSError, http.client.HTTPException):
            self._once(path, body)

    def _patiently(self, path: str, body: Any) -> Reply:
        why = ""
        for pause in (*_PAUSES, None):
            try:
                reply = self._once(path, body)
                if reply.status not in _BUSY:
                    return reply
                why = reply.fault
            except TimeoutError as error:
                raise RunError(
                    f"{self.url}: expected an answer within {self._timeout:g} s; got none; raise "
                    "engine.timeout_seconds, or lower engine.batch_size"
                ) from error
            except (OSError, http.client.HTTPException) as error:
                why = f"{type(error).__name__}: {error}"
            if pause is not None:
                time.sleep(pause)
        raise RunError(
            f"{self.url}: expected a server that answers; got {why}; start it, or correct engine.url, and give the "
            "same command again: the run goes on where it stopped"
        )

    def _once(self, path: str, body: Any) -> Reply:
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=self._timeout)
        until = time.monotonic() + self._timeout
        try:
            content = None if body is None else json.dumps(body)
            connection.request("GET" if body is None else "POST", parts.path + path, content, self._headers)
            response = connection.getresponse()
            return Reply(response.status, _decoded(_read(response, until).decode("utf-8", "replace")))
        finally:
            connection.close()


def _read(response: http.client.HTTPResponse, until: float) -> bytes:
    """All of an answer, also from a server that gives it in drips.

    Raises:
        TimeoutError: it is not there by `until`, in monotonic seconds.
        http.client.IncompleteRead: the server hung up before its end.
    """
    parts = []
    while part := response.read1(1 << 16):
        parts.append(part)
        if time.monotonic() > until:
            raise TimeoutError
    if response.length:
        raise http.client.IncompleteRead(b"".join(parts), response.length)
    return b"".join(parts)


def _decoded(text: str) -> Any:
    """JSON where it is some; vLLM answers orders in plain words."""
    try:
        return json.loads(text)
    except ValueError:
        return text
