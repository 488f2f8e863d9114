"""Control groups of a VM: one for itself, and one for each attempt that needs its own.

They are made below the group the runner was started in, so nothing escapes a limit that stands
above; under cgroup v2 as far up as that takes to find one that hands memory down. Two hierarchies
may be used: one to hold the processes together (v2, or v1's freezer), one to limit memory (v2, or
v1's memory). Where none can be written, there are none, and the VM does without.

A VM's own group holds the runner and what its jobs start: whatever of that outlives a killed
runner, the next one finds by HOME/cgroups.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
from typing import Iterable

from remuda.workers.onvm.processes import slurp

NOTE = "/cgroups"  # in the home: the VM's groups, in each hierarchy
PASSES = 50  # looks for processes to kill; each finds what was forked since the last


def put(path: str, text: str) -> None:
    """Write a control file; OSError if it is not there or refuses."""
    with open(path, "w") as file:
        file.write(text)


def tried(path: str, text: str) -> bool:
    """Write a control file if it is there and takes it."""
    try:
        put(path, text)
    except OSError:
        return False
    return True


def counter(path: str, key: bytes) -> int:
    """Return a figure of a file of `key value` lines, 0 if there is none."""
    found = re.search(rb"^" + key + rb" (\d+)$", slurp(path), re.M)
    return int(found.group(1)) if found else 0


def number(path: str) -> int:
    """Return a file's number, 0 if there is none."""
    text = slurp(path).strip()
    return int(text) if text.isdigit() else 0


def pids_in(folders: Iterable[str]) -> set[int]:
    """Return who is in these groups; this process never."""
    found = {int(pid) for folder in folders for pid in slurp(folder + "/cgroup.procs").split()}
    return found - {os.getpid()}


def thaw(folder: str) -> None:
    """Let a group run, of whatever kind it is."""
    if not os.path.exists(folder + "/freezer.state"):
        tried(folder + "/cgroup.freeze", "0")
    else:
        tried(folder + "/freezer.state", "THAWED")


def own_folders(mounts: str, membership: str) -> dict[str, tuple[str, str]]:
    """Return the group a process is in and the top of it, for "v2", "memory" and "freezer".

    `mounts` and `membership` are texts like /proc/self/mountinfo and /proc/self/cgroup.
    """
    places: dict[str, tuple[str, str]] = {}  # hierarchy: mounted where, and from which group on
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        about, kind = left.split(), right.split()
        if len(about) < 5 or len(kind) < 3 or kind[0] not in ("cgroup", "cgroup2"):
            continue
        where = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found.group(1), 8)), about[4])
        for name in ["v2"] if kind[0] == "cgroup2" else kind[2].split(","):
            places.setdefault(name, (where, about[3].rstrip("/")))
    found: dict[str, tuple[str, str]] = {}
    for line in membership.splitlines():
        _, names, path = line.split(":", 2)
        for name in names.split(",") if names else ["v2"]:
            top, root = places.get(name, ("", ""))
            if top and (path + "/").startswith(root + "/"):
                found[name] = ((top + path[len(root) :]).rstrip("/"), top)
    return {name: found[name] for name in ("v2", "memory", "freezer") if name in found}


class Group:
    """One attempt's group: the folder of it in each hierarchy that is used."""

    def __init__(self, *, tree: str, memory: str) -> None:
        """Make the folders; OSError if they cannot be. Either may be none, or both the same."""
        self.tree, self.memory = tree, memory
        self.folders = [folder for folder in dict.fromkeys((tree, memory)) if folder]
        try:
            for folder in self.folders:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(folder)
        except OSError:
            self.remove()
            raise

    def limit(self, size: int) -> None:
        """Let the whole group have so much memory, swap included; OSError if that is denied."""
        v1 = self.memory + "/memory.limit_in_bytes"
        if os.path.exists(v1):
            put(v1, str(size))
            tried(self.memory + "/memory.memsw.limit_in_bytes", str(size))
            return
        put(self.memory + "/memory.max", str(size))
        tried(self.memory + "/memory.swap.max", "0")
        tried(self.memory + "/memory.oom.group", "1")

    def join(self) -> None:
        """Move this process in."""
        for folder in self.folders:
            put(folder + "/cgroup.procs", "0")

    def freeze(self) -> bool:
        """Stop all of it, soon; False if this cannot be done here."""
        if not self.tree:
            return False
        if os.path.exists(self.tree + "/freezer.state"):
            return tried(self.tree + "/freezer.state", "FROZEN")
        return tried(self.tree + "/cgroup.freeze", "1")

    def thaw(self) -> None:
        """Let it run again."""
        if self.tree:
            thaw(self.tree)

    def kill(self) -> None:
        """Kill all of it, at once where the kernel can."""
        self.thaw()
        if self.tree and tried(self.tree + "/cgroup.kill", "1"):
            return
        for _ in range(PASSES):
            pids = pids_in(self.folders)
            if not pids:
                return
            for pid in pids:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)

    def peak(self) -> int:
        """Return the most memory it ever had, 0 if that is not known."""
        if not self.memory:
            return 0
        names = "memory.max_usage_in_bytes", "memory.peak"
        return max(number(f"{self.memory}/{name}") for name in names)

    def kills(self) -> int:
        """Return how many of it were killed for want of memory."""
        files = "memory.events", "memory.oom_control"
        return max(counter(f"{self.memory}/{name}", b"oom_kill") for name in files)

    def bytes_moved(self) -> tuple[int, int]:
        """Return the bytes read from and written to devices, (0, 0) if that is not known."""
        text = slurp(self.tree + "/io.stat")
        read, written = (
            sum(map(int, re.findall(key + rb"=(\d+)", text)))
            for key in (rb"\brbytes", rb"\bwbytes")
        )
        return read, written

    def remove(self) -> bool:
        """Remove the folders; False as long as something in there has not quite ended."""
        gone = True
        for folder in self.folders:
            try:
                os.rmdir(folder)
            except FileNotFoundError:
                continue
            except OSError:
                gone = False
        return gone


class Cgroups:
    """Where the groups of a VM are. `kind` tells what limits memory: "v1", "v2" or "" (nothing)."""

    def __init__(self, home: str, *, mounts: str, membership: str) -> None:
        """Make the VM's own groups where that is allowed."""
        self.name = "remuda-" + hashlib.sha256(os.fsencode(home)).hexdigest()[:16]
        self.kind, self.tree, self.memory = "", "", ""
        self.note, self.entered, self.origin = home + NOTE, False, ""
        self.doomed: list[Group] = []
        own = own_folders(mounts, membership)
        if "v2" in own:
            self._use_v2(*own["v2"])
        if not self.tree and "freezer" in own:
            self.origin = own["freezer"][0]
            self.tree = self._base(self.origin)
        if not self.kind and "memory" in own:
            self.memory = self._base(own["memory"][0], "memory.limit_in_bytes")
            self.kind = "v1" if self.memory else ""
        with contextlib.suppress(OSError):
            if self.tree:
                os.makedirs(self.tree + "/vm", exist_ok=True)

    def _use_v2(self, own: str, top: str) -> None:
        """Take the nearest group from the runner's own up that hands memory down, else its own."""
        tried(own + "/cgroup.subtree_control", "+memory")
        folder = own
        while True:
            if b"memory" in slurp(folder + "/cgroup.subtree_control").split():
                base = self._base(folder, "memory.max")
                if base and tried(base + "/cgroup.subtree_control", "+memory"):
                    self.kind, self.tree, self.memory, self.origin = "v2", base, base, own
                    tried(base + "/cgroup.subtree_control", "+io")
                    return
            limit = slurp(folder + "/memory.max").strip()
            if folder == top or limit not in (b"", b"max"):
                break
            folder = os.path.dirname(folder)
        self.tree, self.origin = self._base(own), own

    def _base(self, parent: str, needed: str = "cgroup.procs") -> str:
        """Make the VM's group in there and note that; none if it cannot be written to."""
        base = f"{parent}/{self.name}"
        known = noted(self.note)
        try:
            if base not in known:
                with open(self.note + ".new", "w") as file:
                    json.dump([*known, base], file)
                os.rename(self.note + ".new", self.note)
            with contextlib.suppress(FileExistsError):
                os.mkdir(base)
        except OSError:
            return ""
        if os.access(f"{base}/{needed}", os.W_OK):
            return base
        with contextlib.suppress(OSError):
            os.rmdir(base)
        return ""

    def enter(self) -> None:
        """Move the runner into the VM's group, so that whatever it starts is in there."""
        self.entered = bool(self.tree) and tried(self.tree + "/vm/cgroup.procs", str(os.getpid()))

    def leave(self) -> None:
        """Move the runner out and remove what is empty; for its last moment."""
        if self.entered:
            tried(self.origin + "/cgroup.procs", str(os.getpid()))
        self.tidy()
        clear_away({self.tree, self.memory} - {""})

    def group(self, name: str, *, memory: int) -> Group:
        """Make a group of its own for an attempt, and limit it; OSError if it cannot be."""
        tree = f"{self.tree}/{name}" if self.tree else ""
        group = Group(tree=tree, memory=f"{self.memory}/{name}" if memory else "")
        try:
            if memory:
                group.limit(memory)
        except OSError:
            self.doom(group)
            raise
        return group

    def doom(self, group: Group) -> None:
        """Have a group removed as soon as it is empty."""
        self.doomed.append(group)
        self.tidy()

    def tidy(self) -> None:
        """Remove the doomed groups that are empty by now."""
        if self.doomed:
            self.doomed = [group for group in self.doomed if not group.remove()]


def noted(path: str) -> list[str]:
    """Return the groups a VM noted as its own."""
    try:
        folders = json.loads(slurp(path) or b"[]")
    except ValueError:
        return []
    return [str(f) for f in folders if os.path.basename(str(f)).startswith("remuda-")]


def subgroups(bases: Iterable[str]) -> list[str]:
    """Return these groups and all below them, the lowest first."""
    return [folder for base in bases for folder, _, _ in os.walk(base, topdown=False)]


def leftovers(home: str) -> set[int]:
    """Return who is in the groups of a VM whose runner is dead, after letting them run."""
    folders = subgroups(noted(home + NOTE))
    for folder in folders:
        thaw(folder)
    return pids_in(folders)


def clear_away(bases: Iterable[str]) -> None:
    """Remove the groups in which nobody is."""
    for folder in subgroups(bases):
        with contextlib.suppress(OSError):
            os.rmdir(folder)
