"""Object stores for tests, in processes of their own: moto's S3 server, an emulator of Google's."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator

from tests.sshd import free_port
from tests.unit.vm import wait_until

# What S3's libraries read of the environment.
KEYS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
_SERVER = """
import sys, threading
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()  # until whoever started it ends
"""


@contextlib.contextmanager
def moto_server() -> Iterator[str]:
    """Start moto, a fake of AWS; yield its URL. This process and its children find credentials."""
    server = subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        with environment(**KEYS):
            yield f"http://127.0.0.1:{int(server.stdout.readline())}"
    finally:
        server.stdin.close()
        server.stdout.close()
        server.kill()
        server.wait(10)


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Have the variables in the environment."""
    before = {key: os.environ.get(key) for key in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """Start a server that this process and its children find; yield the URL of a new bucket."""
    with moto_server() as endpoint, environment(AWS_ENDPOINT_URL_S3=endpoint):
        import fsspec
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        bucket = f"bucket-{uuid.uuid4().hex[:8]}"
        fsspec.filesystem("s3").mkdir(bucket)
        yield f"s3://{bucket}"


@contextlib.contextmanager
def gs_server() -> Iterator[str]:
    """Start an emulator of Google Cloud Storage, as `s3_server` does; yield the URL of a bucket."""
    port = free_port()
    words = ["start", "--host", "127.0.0.1", "--port", str(port), "--in-memory"]
    server = subprocess.Popen(
        [sys.executable, "-m", "gcp_storage_emulator", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        # Who speaks to an emulator needs no credentials, and it knows but one kind of bucket.
        found = {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}", "NO_GCE_CHECK": "true"}
        with environment(**found, GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT="false"):
            wait_until(lambda: _listens(port), "the emulator listens")
            import fsspec

            fsspec.get_filesystem_class("gs").clear_instance_cache()
            bucket = f"bucket-{uuid.uuid4().hex[:8]}"
            fsspec.filesystem("gs").mkdir(bucket)
            yield f"gs://{bucket}"
    finally:
        server.kill()
        server.wait(10)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True
