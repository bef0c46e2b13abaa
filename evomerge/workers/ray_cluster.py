"""Getting hold of a Ray cluster: one of our own on this machine, or one that is there. Knows nothing of jobs.

A cluster of our own listens on loopback only, asks for a token that lives in this process alone, shows no dashboard,
reports no usage, and ends with this process (in a process that imported Ray before, Ray's own defaults stand). Ray is
imported only here.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from evomerge.config import RayConfig
from evomerge.errors import DiskError, RunError, require

__all__ = ["RayCluster"]

_OBJECT_STORE_BYTES = 80 * 2**20  # next to nothing goes through it; Ray's minimum is 75 MiB
_CONNECT_SECONDS = 10.0


class RayCluster:
    """A connection to Ray, made by `connect` and ended by `close`.

    Args:
        config: where the cluster is and what the workers ask of it.
    """

    def __init__(self, config: RayConfig) -> None:
        self._config = config
        self._ray: Any = None
        self._owned = False
        self._folder: str | None = None

    def connect(self) -> Any:
        """Starts or joins a cluster; one that this process has joined before is used as it is.

        Returns:
            The module `ray`.

        Raises:
            MissingExtraError: Ray is not installed.
            RunError: the cluster does not answer, cannot start, or lacks GPUs.
            DiskError: `/tmp` refuses a folder.
        """
        if "ray" not in sys.modules:  # Ray reads them when it is imported
            _prepare_environment(joins=self._config.address is not None)
        with _signals_kept():
            self._ray = require("ray", "ray")
            if not self._ray.is_initialized():
                logging.getLogger("ray").setLevel(logging.ERROR)
                self._owned = True
                if self._config.address is None:
                    self._start()
                else:
                    self._join(self._config.address)
        return self._ray

    def close(self) -> None:
        """Leaves the cluster; one of our own ends. A second call does nothing."""
        if self._owned:
            with _signals_kept():
                self._ray.shutdown()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._owned, self._folder = False, None

    def _start(self) -> None:
        config = self._config
        try:
            self._folder = tempfile.mkdtemp(prefix="evomerge-", dir="/tmp")  # socket paths in it must be short
        except OSError as error:
            raise DiskError(f"/tmp: expected room for Ray's sockets; got {error.strerror}; free space there") from error
        self._init(
            address="local",
            num_cpus=max(1, math.ceil(config.most * config.cpus)),
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            _temp_dir=self._folder,
        )
        gpus = self._ray.cluster_resources().get("GPU", 0)
        if config.most * config.gpus > gpus:
            raise RunError(
                f"expected {config.most} x {config.gpus:g} GPU for the workers; this machine has {gpus:g}; lower "
                "executor.workers or executor.gpus, or name a cluster in executor.address"
            )

    def _join(self, address: str) -> None:
        host, colon, port = address.rpartition(":")
        if colon and port.isdigit() and "//" not in host:
            try:
                socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
            except OSError as error:
                raise _no_answer(address, error) from error
        self._init(address=address)

    def _init(self, address: str, **options: Any) -> None:
        try:
            self._ray.init(
                address=address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False, **options
            )
        except (OSError, RuntimeError, ValueError, self._ray.exceptions.RayError) as error:
            raise _no_answer(address, error) from error


def _no_answer(address: str, error: Exception) -> RunError:
    if "Version mismatch" in str(error):
        found = " ".join(str(error).split())
        return RunError(
            f"expected the same Ray and Python here and on the cluster at {address!r}; got other versions ({found}); "
            "install the cluster's versions here, or start the run on one of its nodes"
        )
    return RunError(
        f"expected a Ray cluster at {address!r}; got no answer ({error}); check executor.address and that the cluster "
        "is up, or leave the address out to start one here"
    )


def _prepare_environment(*, joins: bool) -> None:
    """Settings that Ray takes from the environment only; the user's come first."""
    if joins:  # a try takes 40 s where something else listens, and Ray makes 20 of them
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")
        return
    defaults = {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on any system: the node's address is loopback
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    if "RAY_AUTH_MODE" not in os.environ:
        defaults |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray puts a handler of its own on SIGTERM, which would end the driver without draining."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
