"""Render one tile of a picture: `tile.py SCENE COLUMN ROW OUT`. Runs on the VM, standard library only.

SCENE is a JSON file {"width", "height", "columns", "rows", "iterations", "left", "top", "scale"};
OUT becomes the tile's raw RGB bytes, row by row.
"""

from __future__ import annotations

import json
import math
import sys
from typing import Any


def colour(n: int, limit: int, z: complex) -> bytes:
    """Return the RGB of a point that left the set after n steps, smoothly shaded."""
    if n == limit:
        return bytes((8, 10, 24))
    smooth = n + 1 - math.log(math.log(max(abs(z), 1.0001)) / math.log(2)) / math.log(2)
    t = math.sqrt(max(smooth, 0.0) / limit)
    return bytes(
        int(127.5 * (1 + math.cos(2 * math.pi * (1.6 * t + shift)))) for shift in (0.55, 0.42, 0.30)
    )


def render(scene: dict[str, Any], column: int, row: int) -> bytes:
    """Return the bytes of the tile at (column, row)."""
    wide = scene["width"] // scene["columns"]
    high = scene["height"] // scene["rows"]
    out = bytearray()
    for y in range(row * high, (row + 1) * high):
        for x in range(column * wide, (column + 1) * wide):
            c = complex(scene["left"] + x * scene["scale"], scene["top"] - y * scene["scale"])
            z = 0j
            n = 0
            while n < scene["iterations"] and z.real * z.real + z.imag * z.imag < 64:
                z = z * z + c
                n += 1
            out += colour(n, scene["iterations"], z)
    return bytes(out)


def main() -> None:
    """Read the scene, write the tile."""
    with open(sys.argv[1]) as file:
        scene = json.load(file)
    data = render(scene, int(sys.argv[2]), int(sys.argv[3]))
    with open(sys.argv[4], "wb") as file:
        file.write(data)
    print("tile", sys.argv[2], sys.argv[3], len(data), "bytes")


if __name__ == "__main__":
    main()
