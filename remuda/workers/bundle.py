"""The runner as the one file a VM needs: a zip archive that Python runs.

It has the sources, for any Python from 3.7 up, and what this Python compiles of them: where the VM's is
of the same version it starts several times as fast. Others pass that over (PEP 552, zipimport).
"""

from __future__ import annotations

import importlib.util
import io
import marshal
import uuid
import zipfile
from functools import lru_cache
from pathlib import Path

WORKERS = Path(__file__).parent
SHARED = ("patterns.py",)  # what the runner uses of the package besides
MAIN = """import sys
if sys.argv[1:3] == ["attach", "--home"]:
    from remuda.workers.onvm.bridge import main
else:
    from remuda.workers.onvm.commands import main
sys.exit(main())
"""


_UNCHECKED = (1).to_bytes(4, "little")  # a hash stands for the source, and is not compared with it
_WITHOUT_REFERENCES = 2  # of marshal's versions: which objects are shared is chance


@lru_cache(maxsize=1)
def bundle() -> bytes:
    """Return the archive; the same sources and version of Python give the same bytes."""
    content = {"__main__.py": MAIN, "remuda/__init__.py": "", "remuda/workers/__init__.py": ""}
    for name in SHARED:
        content["remuda/" + name] = WORKERS.with_name(name).read_text("utf-8")
    for path in (WORKERS / "runner.py", *sorted((WORKERS / "onvm").glob("*.py"))):
        content["remuda/workers/" + path.relative_to(WORKERS).as_posix()] = path.read_text("utf-8")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in content.items():
            archive.writestr(zipfile.ZipInfo(name), text)
            archive.writestr(zipfile.ZipInfo(name + "c"), _compiled(name, text))
    return buffer.getvalue()


def _compiled(name: str, text: str) -> bytes:
    """Return what Python takes in place of a source that it would compile."""
    code = compile(text, f"runner.pyz/{name}", "exec", dont_inherit=True, optimize=0)
    head = importlib.util.MAGIC_NUMBER + _UNCHECKED + importlib.util.source_hash(text.encode())
    return head + marshal.dumps(code, _WITHOUT_REFERENCES)


def install(target: Path) -> None:
    """Write the archive to a path, at once; an equal one is left alone."""
    if target.is_file() and target.read_bytes() == bundle():
        return
    new = target.with_name(f"{target.name}.{uuid.uuid4().hex}")
    new.write_bytes(bundle())
    new.replace(target)
