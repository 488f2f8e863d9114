"""The demo's picture: its scene, its tiles, the check of a tile, and the PNG of them all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from remuda.demo import tile
from remuda.errors import BadInput

Scene = dict[str, Any]
_SAMPLE_ROWS = 2


def scene(tiles: int) -> Scene:
    """Return a view of the Mandelbrot set cut into `tiles`, a square number of 4 to 1024."""
    side = math.isqrt(tiles) if 4 <= tiles <= 1024 else 0
    if side * side != tiles:
        raise BadInput(f"{tiles} tiles do not make a square", hint="4, 9, 16 ... 64 ... 1024")
    width, height = 96 * 8 // side * side, 64 * 8 // side * side
    return {
        "width": width,
        "height": height,
        "columns": side,
        "rows": side,
        "iterations": 500,
        "left": -2.15,
        "top": 1.0,
        "scale": 3.0 / width,
    }


def places(view: Scene) -> list[tuple[int, int]]:
    """Return every (column, row)."""
    return [(column, row) for row in range(view["rows"]) for column in range(view["columns"])]


def is_right(view: Scene, place: tuple[int, int], data: bytes | None) -> bool:
    """Return whether a tile is whole: its size, and some of its lines, rendered here once more."""
    wide, high = view["width"] // view["columns"], view["height"] // view["rows"]
    if data is None or len(data) != wide * high * 3:
        return False
    column, row = place
    thin = {**view, "rows": view["height"]}  # one line of pixels a "row"
    for line in range(0, high, max(1, high // _SAMPLE_ROWS)):
        again = tile.render(thin, column, row * high + line)
        if data[line * wide * 3 : (line + 1) * wide * 3] != again:
            return False
    return True


def assemble(view: Scene, tiles: Mapping[tuple[int, int], bytes], target: Path) -> Path:
    """Write the PNG of the tiles there are, missing ones black; return its path."""
    from PIL import Image

    wide, high = view["width"] // view["columns"], view["height"] // view["rows"]
    whole = Image.new("RGB", (view["width"], view["height"]))
    for (column, row), data in tiles.items():
        if len(data) == wide * high * 3:
            whole.paste(Image.frombytes("RGB", (wide, high), data), (column * wide, row * high))
    whole.save(target)
    return target
