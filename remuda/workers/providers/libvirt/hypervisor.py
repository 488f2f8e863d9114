"""The connections to libvirt of this process, one for each URI, and what goes wrong with them.

libvirt-python is imported only here, and only when it is needed. No call of libvirt has a deadline
of its own, so each piece of work runs in a thread that is left to itself when its time is over.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, TypeVar

from remuda.errors import (
    CapacityError,
    ImageError,
    PermanentProviderError,
    ProviderAuthError,
    ProviderError,
    TransientProviderError,
)

__all__ = ["code_of", "hypervisor", "libvirt", "monitor", "translated", "unless"]

log = logging.getLogger(__name__)
T = TypeVar("T")
KEEPALIVE_S = 5  # between two signs of life of a libvirt elsewhere; three missing ones end it
MISSING = "libvirt-python is not installed here"
HINT = "pip install 'remuda[libvirt]' on the workers; it needs Debian's libvirt-dev, pkg-config and gcc"

_lock = threading.Lock()
_loop_of = 0  # the process whose thread runs libvirt's event loop
_open: dict[tuple[int, str], Any] = {}

_AUTH = ("AUTH_FAILED", "AUTH_CANCELLED", "AUTH_UNAVAILABLE", "ACCESS_DENIED", "OPERATION_DENIED")
_NEVER = (
    "XML_ERROR", "XML_DETAIL", "XML_INVALID_SCHEMA", "CONFIG_UNSUPPORTED", "NO_SUPPORT",
    "INVALID_ARG", "NO_STORAGE_POOL", "NO_STORAGE_VOL", "NO_NETWORK", "ARGUMENT_UNSUPPORTED",
)  # fmt: skip
_MISSING = ("inaccessible backing store", "Cannot access storage file")
_FULL = ("No space left on device", "Disk quota exceeded", "Cannot allocate memory")


def libvirt() -> Any:
    """Return the module; raises PermanentProviderError where it is not installed."""
    try:
        import libvirt as module
    except ImportError as error:
        raise PermanentProviderError(f"{MISSING}: {error}", hint=HINT) from error
    return module


def monitor(domain: Any, command: str) -> str:
    """Ask a running domain's QEMU for something that libvirt does not tell."""
    import libvirt_qemu

    flags = libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP
    return str(libvirt_qemu.qemuMonitorCommand(domain, command, flags))


def code_of(error: Exception) -> str:
    """Return the name of a libvirt error's code, such as NO_DOMAIN; "" of any other error."""
    module = libvirt()
    if not isinstance(error, module.libvirtError):
        return ""
    return _codes().get(error.get_error_code(), "")


def hypervisor(uri: str, work: Callable[[Any], T], *, deadline_s: float) -> T:
    """Return what `work` returns, called with a connection; raises ProviderError.

    TransientProviderError if it takes longer: then `work` may go on, unheard.
    """
    libvirt()
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work(_connected(uri)))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="remuda-libvirt", daemon=True).start()
    try:
        return future.result(deadline_s)
    except FutureTimeout:
        _forget(uri)
        raise TransientProviderError(
            f"libvirt at {uri} did not do it within {deadline_s:g} s"
        ) from None
    except ProviderError:
        raise
    except Exception as error:
        if not code_of(error):
            raise
        raise translated(uri, error) from error


def translated(uri: str, error: Exception) -> ProviderError:
    """Return what a libvirt error means."""
    code, text = code_of(error), str(error)
    if code in _AUTH or ("authentication" in text and code == "RPC"):
        return ProviderAuthError(f"libvirt at {uri} refuses us: {text}")
    if any(words in text for words in _FULL):
        return CapacityError(f"the host of {uri} has no room left: {text}")
    if any(words in text for words in _MISSING):
        return ImageError(f"libvirt at {uri} cannot read the image: {text}")
    if code in _NEVER:
        return PermanentProviderError(f"libvirt at {uri} cannot do it: {text}")
    return TransientProviderError(f"libvirt at {uri}: {text}")


# ---- connections


def _connected(uri: str) -> Any:
    key = (os.getpid(), uri)
    with _lock:
        connection = _open.get(key)
    if connection is not None:
        with contextlib.suppress(libvirt().libvirtError):
            if connection.isAlive():
                return connection
        _forget(uri)
    _run_loop()
    made = libvirt().open(uri)
    with contextlib.suppress(libvirt().libvirtError):  # a libvirt in this process has none
        made.setKeepAlive(KEEPALIVE_S, 3)
    with _lock:
        return _open.setdefault(key, made)


def _forget(uri: str) -> None:
    """Open another connection next time; this one is closed when the last call on it has ended."""
    with _lock:
        _open.pop((os.getpid(), uri), None)


def _run_loop() -> None:
    """Have libvirt's events handled in this process: its signs of life are events."""
    global _loop_of
    module = libvirt()
    with _lock:
        if _loop_of == os.getpid():
            return
        if not _loop_of:
            module.registerErrorHandler(_quiet, None)
            module.virEventRegisterDefaultImpl()
        _loop_of = os.getpid()

    def run() -> None:
        while True:
            module.virEventRunDefaultImpl()

    threading.Thread(target=run, name="remuda-libvirt-events", daemon=True).start()


def _quiet(_context: Any, error: Any) -> None:
    """Take what libvirt would print; the exceptions tell the same."""
    log.debug("libvirt: %s", error[2] if len(error) > 2 else error)


def _codes() -> dict[int, str]:
    module = libvirt()
    if not _known:
        _known.update(
            (value, name.removeprefix("VIR_ERR_"))
            for name, value in vars(module).items()
            if name.startswith("VIR_ERR_") and isinstance(value, int)
        )
    return _known


_known: dict[int, str] = {}


class unless:
    """Pass over libvirt errors of these codes: what was to be done is done already."""

    def __init__(self, *codes: str) -> None:
        self._codes = codes

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        return isinstance(error, Exception) and code_of(error) in self._codes
