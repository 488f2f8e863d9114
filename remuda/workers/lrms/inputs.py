"""The input files of a job for a Resource: each one looked up and checked, nothing copied yet."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from remuda.errors import DataStagingError
from remuda.finding import FoundInput, found_inputs
from remuda.spec_files import Input, is_url
from remuda.stores import validate_urls
from remuda.workers.backends.base import InputFile

__all__ = ["input_files"]


def input_files(inputs: Iterable[Input]) -> tuple[InputFile, ...]:
    """Return every single file; raises DataStagingError for one that cannot be had.

    What is at a URL is read when the job starts.
    """
    return tuple(_file(found) for found in found_inputs(inputs, os.getcwd()))


def _file(found: FoundInput) -> InputFile:
    name, path = found.name, found.path
    if is_url(path):
        if not validate_urls([path]):
            scheme = path.partition("://")[0]
            raise DataStagingError(f"input {name!r}: {scheme} cannot be staged here")
        return InputFile(name, path)
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataStagingError(f"input {name!r}: {path}: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise DataStagingError(f"input {name!r}: {path} is no regular file")
    if not os.access(path, os.R_OK):
        raise DataStagingError(f"input {name!r}: {path} cannot be read")
    mode = stat.S_IMODE(status.st_mode) & 0o777
    return InputFile(name, Path(os.path.abspath(path)).as_uri(), size=status.st_size, mode=mode)
