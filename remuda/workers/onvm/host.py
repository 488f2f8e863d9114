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
import subprocess
import sys
import time
import uuid
from typing import Any, Dict, Iterator

Ask = Dict[str, Any]

MARK = "remuda-answer:"
PIECE = 1 << 18


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
    """Keep the file that follows, unless it is there: {"have"}, or {"send"} and then {"have"}."""
    size, folder = ask["size"], os.path.dirname(path)
    if ask.get("inside") and not os.path.isdir(ask["inside"]):
        return {"gone": True}
    os.makedirs(folder, 0o700, exist_ok=True)
    with locked(path + ".lock", ask["wait_s"]):  # who waited too long sends it too; no harm
        if not (os.path.isfile(path) and os.stat(path).st_size == size):
            answer(send=True)
            receive(path, ask)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path + ".lock")
    return {"have": True, "path": path}


def receive(path: str, ask: Ask) -> None:
    new, left, sha256 = f"{path}.{uuid.uuid4().hex}.part", ask["size"], hashlib.sha256()
    try:
        with open(new, "wb") as file:
            while left:
                piece = sys.stdin.buffer.read(min(left, PIECE))
                if not piece:
                    raise OSError("the connection broke")
                sha256.update(piece)
                file.write(piece)
                left -= len(piece)
        if sha256.hexdigest() != ask["sha256"]:
            raise ValueError("the content is not what was announced")
        os.chmod(new, 0o600)
        os.rename(new, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)


def main() -> None:
    ask = json.loads(sys.stdin.buffer.readline().decode())
    place = os.path.realpath(os.path.join(os.path.expanduser("~"), ask["place"]))
    try:
        answer(**globals()["do_" + ask["do"]](place, ask))
    except (OSError, ValueError, KeyError) as error:
        answer(error=str(error) or repr(error))


if __name__ == "__main__":
    main()
