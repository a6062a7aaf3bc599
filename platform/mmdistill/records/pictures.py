"""Matrices as a small picture, side by side.

Axes: B rows looked at, H and W pixels.
"""

import functools
import io
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, ImageDraw, ImageFont

Matrices = Mapping[str, npt.NDArray[np.float64]]
_NAMES = ("student", "teacher", "plan")
# TensorBoard shows pictures 320 pixels wide: large letters, and the same three places in all of them.
_SIZE, _GAP, _TEXT, _TICK = 240, 24, 30, 6
_WHITE, _BLACK = (255, 255, 255), (40, 40, 40)
# Nine colours of viridis, from dark blue to yellow.
_COLOURS = np.array(
    [[68, 1, 84], [71, 44, 122], [59, 81, 139], [44, 113, 142], [33, 144, 141], [39, 173, 129], [92, 200, 99],
     [170, 220, 50], [253, 231, 37]],
    dtype=np.float64,
)  # fmt: skip


def matrices_of(table: pa.Table, trial_id: str) -> tuple[Matrices, list[float]]:
    """Return the matrices_BB of a run by name, and the labels of their lines; empty where it has none."""
    lines = table.filter(pc.equal(table["trial_id"], trial_id)).sort_by("place").to_pylist()
    names = sorted({line["matrix"] for line in lines}, key=_NAMES.index)
    found = {name: [line for line in lines if line["matrix"] == name] for name in names}
    labels = [line["label"] for line in found[names[0]]] if names else []
    return {name: np.array([line["values"] for line in found[name]]) for name in names}, labels


def picture(matrices: Matrices, labels: Sequence[float]) -> bytes:
    """Return the matrices as a PNG, similarities on one scale, a plan by its square root; ticks part classes.

    Args:
        matrices: matrices_BB by name, ``student``, ``teacher`` or ``plan``.
        labels: of the lines, sorted.
    """
    scale = max(1, _SIZE // len(labels))
    side = scale * len(labels)
    width = _GAP + (side + _GAP) * len(_NAMES)
    canvas = Image.new("RGB", (width, side + 2 * _TEXT + _TICK), _WHITE)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=22)
    cosines = np.concatenate([matrix.ravel() for name, matrix in matrices.items() if name != "plan"])
    for name, matrix_BB in matrices.items():
        is_plan = name == "plan"
        low, high = (0.0, matrix_BB.max()) if is_plan else (cosines.min(), cosines.max())
        place_BB = (matrix_BB - low) / max(high - low, 1e-12)
        x, y = _GAP + _NAMES.index(name) * (side + _GAP), _TEXT + _TICK
        # A plan has few large entries; its square root shows the others too.
        pixels_HW3 = _coloured(np.sqrt(place_BB) if is_plan else place_BB)
        pixels_HW3 = pixels_HW3.repeat(scale, 0).repeat(scale, 1)
        canvas.paste(Image.fromarray(pixels_HW3), (x, y))
        draw.text((x, 1), name, _BLACK, font)
        scale_text = f"{low:.2g} to {high:.2g}{' (root)' if is_plan else ''}"
        draw.text((x, y + side + 1), scale_text, _BLACK, font)
        for place in _parting(labels):
            at = place * scale
            draw.line((x + at, y - _TICK, x + at, y - 1), _BLACK)
            draw.line((x - _TICK, y + at, x - 1, y + at), _BLACK)
    content = io.BytesIO()
    canvas.quantize(palette=_palette(), dither=Image.Dither.NONE).save(content, "PNG", optimize=True)
    return content.getvalue()


def _coloured(place_BB: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """Return values 0 to 1 as colours, first to last."""
    stops = np.linspace(0, 1, len(_COLOURS))
    channels = [np.interp(place_BB, stops, channel) for channel in _COLOURS.T]
    found: npt.NDArray[np.uint8] = np.stack(channels, axis=-1).round().astype(np.uint8)
    return found


@functools.cache
def _palette() -> Image.Image:
    """Return the colours of all pictures: finding each one's own takes longer than drawing it."""
    greys_G3 = np.linspace(_BLACK, _WHITE, 16).round().astype(np.uint8)
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.concatenate([_coloured(np.linspace(0, 1, 112)), greys_G3]).ravel().tolist())
    return palette


def _parting(labels: Sequence[float]) -> list[int]:
    """Return before which lines another class begins; none where labels are targets, all different."""
    places = [n for n in range(1, len(labels)) if labels[n] != labels[n - 1]]
    return places if len(places) < len(labels) / 2 else []
