"""The seed of a VM: a small disk from which its first boot learns who it is (cloud-init's NoCloud)."""

from __future__ import annotations

import json
from io import BytesIO

__all__ = ["LABEL", "seed_image"]

LABEL = "cidata"


def seed_image(user_data: bytes, *, instance_id: str, hostname: str) -> bytes:
    """Return an ISO 9660 image, labelled `cidata`, with the files user-data and meta-data.

    Raises ImportError where pycdlib is missing.
    """
    import pycdlib

    meta = {"instance-id": instance_id, "local-hostname": hostname}
    files = {"user-data": user_data, "meta-data": json.dumps(meta).encode()}
    image = pycdlib.PyCdlib()
    image.new(interchange_level=3, vol_ident=LABEL, joliet=3, rock_ridge="1.09")
    try:
        for name, data in files.items():
            short = name.replace("-", "").upper()
            image.add_fp(
                BytesIO(data), len(data), f"/{short}.;1", rr_name=name, joliet_path=f"/{name}"
            )
        written = BytesIO()
        image.write_fp(written)
    finally:
        image.close()
    return written.getvalue()
