"""What the Slurm jobs of a home leave for each other in HOME/slurm, and the programs they run.

    name            the Slurm job name of this home, chosen once
    wrapper, launch.py   what runs inside a Slurm job
    b-TOKEN/        one sbatch: `jobs` (what was asked), `id` (once Slurm took it), `log`, `run`, and
                    one file for each attempt, named by its index
    live/A.c        the claim of attempt A, a link that only one can make: who has it decides
                    whether the command starts. A Slurm job makes it before anything else, the
                    runner makes it so that none ever can
    live/A.s        how attempt A ended, renamed into place

The folder must be on a filesystem that the compute nodes share under the same path.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import uuid
from typing import Any, Iterable, NamedTuple

from remuda.workers.onvm.capture import SPILL
from remuda.workers.onvm.job import Job
from remuda.workers.onvm.longfile import NOTE, Cut
from remuda.workers.onvm.processes import slurp
from remuda.workers.onvm.slurmscripts import LAUNCH, WRAPPER

TAKEN_BACK = "taken back"  # a claim of the runner's own
COPY = 1 << 20


class Claim(NamedTuple):
    """The Slurm job that started an attempt: its id (0: nobody did), its name, and when."""

    id: int
    name: str
    at: float


class FileStream:
    """One output of a job that a process on another machine writes into a file of a shared disk.

    Has what the runner uses of a `capture.Stream`; the limit is kept when the job has ended.
    """

    fd = inner = -1

    def __init__(self, path: str, limit: int) -> None:
        """Look at the path whenever asked; it need not exist yet."""
        self.path, self.half, self.data = path, max(limit // 2, 2 * SPILL), bytearray()
        self.file = False  # whether it stays in its file
        self.error, self.whole = "", -1
        self.cut: Cut | None = None
        self.litter: list[str] = []

    @property
    def total(self) -> int:
        """The bytes written so far, kept or not."""
        if self.whole >= 0:
            return self.whole
        try:
            with open(self.path, "rb") as file:  # opening it makes NFS look anew
                return os.fstat(file.fileno()).st_size
        except OSError:
            return 0

    def read(self, offset: int, size: int) -> tuple[int, bytes]:
        """Return up to `size` bytes from an offset on, and that offset."""
        try:
            with open(self.path, "rb") as file:
                return offset, os.pread(file.fileno(), size, offset)
        except OSError:
            return offset, bytes(self.data[offset : offset + size])

    def finish(self, spill: int) -> None:
        """Take it in if it is small, else leave it in its file, the middle cut out if it is huge."""
        self.whole = self.total
        try:
            if self.whole > spill:
                with open(self.path, "r+b", 0) as file:
                    self.file = True
                    if self.whole > 2 * self.half:
                        self._cut(file, NOTE % self.whole)
            elif self.whole:
                self.data += slurp(self.path)
        except OSError as error:
            self.error = f"output lost: {error.strerror}"

    def _cut(self, file: Any, note: bytes) -> None:
        fd = file.fileno()
        at, start = self.half + len(note), self.whole - self.half + len(note)
        self.cut = [self.half, start, self.whole]
        os.pwrite(fd, note, self.half)
        while start < self.whole:
            moved = os.pwrite(fd, os.pread(fd, min(COPY, self.whole - start), start), at)
            start, at = start + moved, at + moved
        file.truncate(at)

    def close(self) -> None:
        """Nothing is open while the job runs."""


def write(path: str, text: str) -> None:
    """Replace a file at once."""
    new = f"{path}.{uuid.uuid4().hex[:8]}.new"
    with open(new, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)
    os.rename(new, path)


class Shared:
    """HOME/slurm."""

    def __init__(self, home: str) -> None:
        """Have the folder and what every Slurm job needs of it."""
        self.path, self.live = home + "/slurm", home + "/slurm/live"
        os.makedirs(self.live, 0o700, exist_ok=True)
        for name, text in (("wrapper", WRAPPER), ("launch.py", LAUNCH)):
            if slurp(f"{self.path}/{name}") != text.encode():
                write(f"{self.path}/{name}", text)
        self.name = name_of(home)
        if not self.name:
            write(self.path + "/name", "remuda-" + uuid.uuid4().hex[:12])
            self.name = name_of(home)

    def script(self, job: Job, env: dict[str, str]) -> str:
        """Return the file of one attempt: sourced by the wrapper, it says what `go` runs."""
        quoted = {
            "live": self.live,
            "lib": self.path,
            "box": job.folder,
            "cwd": job.cwd,
            "out": job.out.path if job.out else "/dev/null",
            "err": job.err.path if job.err else "",
        }
        pro, epi = job.prologue, job.epilogue
        lines = [f"{name}={shlex.quote(value)}" for name, value in quoted.items()]
        lines += [f"a={job.a} pro={'1' if pro else ''} epi={'1' if epi else ''}"]
        words = " ".join(shlex.quote(f"{name}={value}") for name, value in env.items())
        launch = '${py:+"$py" -I -S "$lib/launch.py" "$c.u"}'
        lines += [f'with() {{ exec {launch} env {words} "$@"; }}', "go() { case $1 in"]
        if pro:
            lines.append(f"pro) with {command(pro)} ;;")
        lines.append(f"cmd) with {command(job.argv)} ;;")
        if epi:  # a name without a value: as it is with a signal, there is no exit code then
            told = '"REMUDA_EXIT_CODE=${code#-}" "REMUDA_SIGNAL=${number#-}"'
            lines.append(f"epi) with {told} {command(epi)} ;;")
        return "\n".join([*lines, "esac; }", ""])

    def new_batch(self, token: str, specs: list[dict[str, Any]], texts: list[str]) -> str:
        """Keep what one sbatch needs, whole or not at all; returns its folder, or OSError."""
        final, folder = f"{self.path}/b-{token}", f"{self.path}/new-{token}"
        os.mkdir(folder, 0o700)
        for index, text in enumerate(texts):
            write(f"{folder}/{index}", text)
        wrapper, attempt = shlex.quote(self.path + "/wrapper"), shlex.quote(final + "/")
        run = f'#!/bin/sh\nexec /bin/sh {wrapper} {attempt}"${{SLURM_ARRAY_TASK_ID:-0}}"\n'
        write(folder + "/run", run)
        write(folder + "/jobs", json.dumps(specs))
        os.rename(folder, final)
        return final

    def batches(self) -> list[tuple[str, int, list[dict[str, Any]]]]:
        """Return token, Slurm's id (0: not known) and attempts of every sbatch kept here."""
        found = []
        for name in sorted(os.listdir(self.path)):
            specs = slurp(f"{self.path}/{name}/jobs") if name.startswith("b-") else b""
            if specs:
                number = slurp(f"{self.path}/{name}/id")
                found.append((name[2:], int(number or 0), json.loads(specs)))
        return found

    def leftovers(self) -> list[str]:
        """Return the folders of what was never complete, or is given up."""
        names = os.listdir(self.path)
        return [f"{self.path}/{name}" for name in names if name.startswith(("new-", "old-"))]

    def forget(self, token: str, attempts: Iterable[int]) -> list[str]:
        """Give up an sbatch and what its attempts left here; returns a folder to delete.

        First the folder: without its file an attempt cannot start, claim or no claim.
        """
        doomed = f"{self.path}/old-{token}"
        with contextlib.suppress(OSError):
            os.rename(f"{self.path}/b-{token}", doomed)
        for a in attempts:
            for end in ("c", "s", "t", "u", "n"):
                unlink(f"{self.live}/{a}.{end}")
        return [doomed]

    def fence(self, a: int) -> bool:
        """Make sure that an attempt never starts; False if it has."""
        try:
            os.symlink(TAKEN_BACK, f"{self.live}/{a}.c")
        except FileExistsError:
            return os.readlink(f"{self.live}/{a}.c") == TAKEN_BACK
        return True

    def claim(self, a: int) -> Claim:
        """Return who started an attempt."""
        path = f"{self.live}/{a}.c"
        try:
            words, at = os.readlink(path).split(" "), os.lstat(path).st_mtime
        except OSError:
            return Claim(0, "", 0.0)
        return Claim(int(words[0]), words[1], at) if words[0].isdigit() else Claim(0, "", at)

    def news(self) -> list[tuple[int, str]]:
        """Return (attempt, "c" or "s") of every claim and status there is, claims first."""
        found = []
        for name in os.listdir(self.live):
            a, _, end = name.partition(".")
            if end in ("c", "s"):
                found.append((int(a), end))
        return sorted(found, key=lambda news: news[1])


def unlink(path: str) -> None:
    """Delete a file, if it is there and can be."""
    with contextlib.suppress(OSError):
        os.unlink(path)


def name_of(home: str) -> str:
    """Return the Slurm job name of a home, "" if it never had Slurm jobs."""
    return slurp(home + "/slurm/name").decode().strip()


def command(words: list[str]) -> str:
    """Return a command's words for the shell; `env` would take a first one with = for a variable."""
    before = ["sh", "-c", 'exec "$@"', "sh"] if "=" in words[0] or words[0][:1] == "-" else []
    return " ".join(shlex.quote(word) for word in [*before, *words])


class Status:
    """What a wrapper wrote when its attempt had ended. ValueError if that is not understood."""

    def __init__(self, shared: Shared, a: int) -> None:
        """Read it."""
        words = slurp(f"{shared.live}/{a}.s").decode().split()
        if len(words) != 9:
            raise ValueError(f"bad status of attempt {a}: {words}")
        self.wall = max(0.0, float(words[1]) - float(words[0]))
        self.part = words[2]
        self.code = None if words[3] == "-" else int(words[3])
        self.signal = None if words[4] == "-" else int(words[4])
        self.term = words[5] == "1"  # somebody sent TERM to the whole of it
        user, system, peak = (0.0 if word == "-" else float(word) for word in words[6:])
        if words[6] == "-":
            user, system = times(slurp(f"{shared.live}/{a}.t").decode())
        self.ru_utime, self.ru_stime, self.ru_maxrss = user, system, int(peak)
        self.ru_inblock = self.ru_oublock = 0  # not known


def times(text: str) -> tuple[float, float]:
    """Return user and system seconds of the children, as the shell's `times` prints them."""
    try:
        words = [word.rstrip("s").split("m") for word in text.split("\n")[1].split()]
        user, system = (60 * int(m) + float(s.replace(",", ".")) for m, s in words)
    except (IndexError, ValueError):
        return 0.0, 0.0
    return user, system
