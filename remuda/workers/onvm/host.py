"""What a controller asks of a host beside its runner: who has claimed it, and to keep a file.

Sent as source to a bare `python3` over SSH and run once per request (see `remuda.workers.remote`),
so it stands alone: Python >= 3.7, standard library only. The request is a JSON line on standard
input; an answer is a line that begins with MARK, whatever else a login shell prints.

BASE/claim says whose VM the host is: {token, pool, name, confirmed}. It is made by a link, which
only one can make, and changed under a lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import select
import socket
import stat
import subprocess
import sys
import time
import uuid
from typing import Any, Dict, Iterator

Ask = Dict[str, Any]

MARK = "remuda-answer:"
PIECE = 1 << 18
SILENCE_S = 60.0  # how long a sender may say nothing
MOST = 20 << 30  # bytes in a cache of no limit of its own; less on a small disk


def answer(**fields: Any) -> None:
    sys.stdout.write("\n" + MARK + json.dumps(fields) + "\n")
    sys.stdout.flush()


def read_claim(base: str) -> Any:
    try:
        with open(base + "/claim") as file:
            claim = json.load(file)
    except FileNotFoundError:
        return None
    return claim


def home_of(base: str, token: str) -> str:
    return f"{base}/vm-{hashlib.sha256(token.encode()).hexdigest()[:12]}"


def beside(path: str, text: str) -> str:
    """Write a new file next to a path and return its name."""
    new = f"{path}.{uuid.uuid4().hex}.part"
    with open(new, "w") as file:
        file.write(text)
    return new


@contextlib.contextmanager
def locked(path: str, seconds: float) -> Iterator[bool]:
    """Hold a lock file's lock, but for one that is gone by then; True if it was had in time."""
    deadline, fd, got = time.monotonic() + seconds, -1, False
    try:
        while not got and time.monotonic() < deadline:
            if fd < 0:
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                got = os.path.exists(path) and os.path.samestat(os.fstat(fd), os.stat(path))
                if not got:
                    os.close(fd)
                    fd = -1
            except BlockingIOError:
                time.sleep(0.01)
        yield got
    finally:
        if fd >= 0:
            os.close(fd)


@contextlib.contextmanager
def claim_lock(base: str, seconds: float = 5.0) -> Iterator[None]:
    with locked(base + "/lock", seconds) as got:
        if not got:
            raise OSError(f"another process holds {base}/lock")
        yield


def do_look(base: str, ask: Ask) -> Ask:
    claim = read_claim(base)
    if not claim:
        return {"claim": None}
    home = home_of(base, claim["token"])
    state = "running" if os.path.exists(home + "/runner.json") else "pending"
    if os.path.exists(home + "/stopped"):
        state = "stopped"
    return {"claim": claim, "home": home, "state": state}


def do_claim(base: str, ask: Ask) -> Ask:
    """Claim the host, not yet confirmed, unless somebody has: {"got"}."""
    text = json.dumps({k: ask[k] for k in ("token", "pool", "name")})
    for _ in range(5):
        os.makedirs(base, 0o700, exist_ok=True)
        new = beside(base + "/claim", text)
        try:
            os.link(new, base + "/claim")
            return {"got": True}
        except FileExistsError:
            return {"got": False}
        except FileNotFoundError:
            continue  # the folder was just removed
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(new)
    raise OSError(f"cannot claim {base}")


def do_confirm(base: str, ask: Ask) -> Ask:
    """Make the claim of this token final: {"home"}, none if it is not there any more."""
    try:
        with claim_lock(base):
            claim = read_claim(base)
            if not claim or claim["token"] != ask["token"]:
                return {"home": None}
            claim["confirmed"] = True
            os.rename(beside(base + "/claim", json.dumps(claim)), base + "/claim")
            return {"home": home_of(base, ask["token"])}
    except FileNotFoundError:
        return {"home": None}


def do_revoke(base: str, ask: Ask) -> Ask:
    """Take the claim of this token back, unless it is final: {"final"}."""
    try:
        with claim_lock(base):
            claim = read_claim(base)
            final = bool(claim and claim["token"] == ask["token"] and claim.get("confirmed"))
            if claim and claim["token"] == ask["token"] and not final:
                tidy(base)
    except FileNotFoundError:
        final = False
    return {"final": final}


def tidy(base: str) -> None:
    """Remove the claim, the lock, and the folder if that was all; the lock is held."""
    for name in ("/claim", "/lock"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(base + name)
    with contextlib.suppress(OSError):
        os.rmdir(base)


def do_release(base: str, ask: Ask) -> Ask:
    """End the VM of this token, remove all it left, then its claim."""
    try:
        with claim_lock(base, 50.0):
            end(home_of(base, ask["token"]))
            claim = read_claim(base)
            if not claim or claim["token"] == ask["token"]:
                tidy(base)
    except FileNotFoundError:
        pass  # the folder itself is gone
    return {}


def end(home: str) -> None:
    """Kill all that runs in a home, and remove it."""
    for program in glob.glob(glob.escape(home) + "/runner-*.pyz")[:1]:
        command = [sys.executable, "-I", "-S", "-X", "utf8", program, "stop", "--home", home]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        if done.returncode:
            raise OSError(done.stderr.decode(errors="replace").strip()[-500:])
    if os.path.lexists(home):
        if os.geteuid():
            subprocess.run(["chmod", "-R", "u+rwx", home], stderr=subprocess.DEVNULL)
        subprocess.run(["rm", "-rf", "--", home], stderr=subprocess.DEVNULL)
    if os.path.lexists(home):
        raise OSError(f"cannot remove {home}")


def do_put(path: str, ask: Ask) -> Ask:
    """Keep the file that follows, unless it is there: {"have"}, or {"send", "at"} and then {"have"}.

    With `limit` it is one of a cache: it was used just now, and others are given up for it.
    """
    folder, cached = os.path.dirname(path), "limit" in ask
    if ask.get("inside") and not os.path.isdir(ask["inside"]):
        return {"gone": True}
    os.makedirs(folder, 0o700, exist_ok=True)
    if not present(path, ask["size"]):
        with locked(path + ".lock", ask["wait_s"]) as got:
            try:
                if not present(path, ask["size"]):
                    if cached:
                        make_room(folder, ask)
                    receive(path, f"{path}.part" if got else f"{path}.{uuid.uuid4().hex}.part", ask)
            finally:
                if got:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(path + ".lock")
    return {"have": True, "path": path}


def present(path: str, size: int) -> bool:
    """Tell whether the file is there, and mark it as used just now; it is not given up meanwhile."""
    with using(os.path.dirname(path), fcntl.LOCK_SH):
        if not os.path.isfile(path) or size not in (-1, os.stat(path).st_size):
            return False
        os.utime(path)
        return True


@contextlib.contextmanager
def using(folder: str, how: int) -> Iterator[None]:
    """Hold a folder's own lock, for moments only."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, how)
        yield
    finally:
        os.close(fd)


def receive(path: str, part: str, ask: Ask) -> None:
    """Write what follows to `part`, after what a try that broke has left there; then rename it."""
    at = os.stat(part).st_size if os.path.isfile(part) else 0
    while True:
        answer(send=True, at=at)
        if written(part, at, ask["sha256"]):
            break
        os.unlink(part)
        if not at:
            raise ValueError("the content is not what was announced")
        at = 0  # what was there was wrong
    os.chmod(part, 0o600)
    os.rename(part, path)


def written(part: str, at: int, wanted: str) -> bool:
    """Write the frames that follow; True if all of the file is what it should be.

    A frame is its length in 4 bytes and the data; an empty one is the last, and the hash of the
    whole follows. What came of a file that is cut off stays, for the next try.
    """
    sha256 = hashlib.sha256()
    with open(part, "r+b" if at else "wb", 0) as file:
        while at:
            piece = file.read(min(at, PIECE))
            sha256.update(piece)
            at -= len(piece)
        size = int.from_bytes(incoming(4), "big")
        while size:
            piece = incoming(size)
            sha256.update(piece)
            try:
                while piece:
                    piece = piece[file.write(piece) :]
            except OSError:
                os.unlink(part)  # the disk is full: it must not stay so
                raise
            size = int.from_bytes(incoming(4), "big")
    told = incoming(64).decode()
    return sha256.hexdigest() == (wanted or told)


def incoming(size: int) -> bytes:
    """Return so many bytes of standard input; OSError if they do not come."""
    data = b""
    while len(data) < size:
        if not select.select([0], [], [], SILENCE_S)[0]:
            raise OSError("the sender has fallen silent")
        piece = os.read(0, size - len(data))
        if not piece:
            raise OSError("the connection broke")
        data = data + piece if data else piece
    return data


def make_room(folder: str, ask: Ask) -> None:
    """Give up what was used longest ago, until the cache and the new file are within the limit.

    What was used within `grace_s` stays: a job that needs it may be on its way. So does what the
    runner still has to copy into sandboxes, and everything if it does not say what that is.
    """
    disk, found = os.statvfs(folder), []
    limit = ask["limit"] or min(MOST, disk.f_blocks * disk.f_frsize // 10)
    for name in (name for name in os.listdir(folder) if not name.endswith(".lock")):
        with contextlib.suppress(FileNotFoundError):
            state = os.stat(f"{folder}/{name}")
            if stat.S_ISREG(state.st_mode):
                found.append((state.st_mtime, state.st_size, f"{folder}/{name}"))
    excess = sum(size for _, size, _ in found) + max(0, ask["size"]) - limit
    old = sorted(entry for entry in found if entry[0] < time.time() - ask["grace_s"])
    needed = needed_by(ask["inside"]) if excess > 0 and old else None
    if needed is None:
        return
    with using(folder, fcntl.LOCK_EX):
        for used_at, size, path in old:
            if excess > 0 and path not in needed and os.stat(path).st_mtime == used_at:
                os.unlink(path)
                excess -= size


def needed_by(home: str) -> Any:
    """Ask the home's runner for the paths it still has to copy; None if it does not say."""
    fd = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(5.0)
            sock.connect(f"/proc/self/fd/{fd}/runner.sock")
            sock.sendall(b'{"id":1,"do":"sources"}\n')
            with sock.makefile() as file:
                said = json.loads(file.readline())
    except (ConnectionRefusedError, FileNotFoundError):
        return set()  # no runner, and the next one begins with nothing to do
    except (OSError, ValueError):
        return None
    finally:
        os.close(fd)
    return set(said["sources"]) if said.get("ok") else None


def do_get(home: str, ask: Ask) -> Any:
    """Send a file of an attempt from `at` on: {"size", "at", "prefix"}, the bytes, {"sha256"}.

    `prefix` is the hash of what is before `at`, and 0 is taken for one past the end.
    """
    jobs, name = f"{home}/jobs", ask["name"]
    if name in ("stdout", "stderr"):
        folder, path = jobs, f"{jobs}/{int(ask['a'])}.{name[3:]}"
    else:
        folder = f"{jobs}/{int(ask['a'])}"
        path = f"{folder}/{name[2:] if name.startswith('./') else name}"
    path = os.path.realpath(path)
    if not path.startswith(folder + "/") or not os.path.isfile(path):
        return {"missing": True}
    sha256 = hashlib.sha256()
    with open(path, "rb", 0) as file:
        size = os.fstat(file.fileno()).st_size
        at = left = ask["at"] if ask["at"] <= size else 0
        while left:
            piece = file.read(min(left, PIECE))
            sha256.update(piece)
            left -= len(piece)
        answer(size=size, at=at, prefix=sha256.hexdigest())
        left = size - at
        while left:
            piece = file.read(min(left, PIECE))
            if not piece:
                raise SystemExit("the file shrinks")  # no answer: bytes were promised
            sha256.update(piece)
            left -= len(piece)
            while piece:
                piece = piece[os.write(1, piece) :]
    return {"sha256": sha256.hexdigest()}


def main() -> None:
    ask = json.loads(sys.stdin.buffer.readline().decode())
    place = os.path.realpath(os.path.join(os.path.expanduser("~"), ask["place"]))
    try:
        answer(**globals()["do_" + ask["do"]](place, ask))
    except (OSError, ValueError, KeyError) as error:
        answer(error=str(error) or repr(error))


if __name__ == "__main__":
    main()
