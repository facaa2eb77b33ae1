"""The figure grammar of the book: every picture says the same thing in the same way.

* A frame is grey, dark to bright, with thin lines on the pixel borders; **x is the row and points down, y is the column and points right**.
* Truth is an open blue circle, an estimate is a cross, a predicted standard deviation is an error bar.
* A method keeps one colour through the whole book (:func:`method_colour`), chosen from palettes that colour-blind readers can tell apart.
* A small orange triangle in a pixel's corner says that the pixel is saturated.
* Figures are white sheets with dark ink, so they stay legible on a dark page.

Needs matplotlib; ``import csist`` does not import this module.
"""
from __future__ import annotations

import zlib
from contextlib import AbstractContextManager

import matplotlib.patheffects as effects
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from csist.imaging import FocalPlane, SubpixelGrid
from csist.scenes import Targets

INK = "#1b1f24"  # text and axes
FAINT = "#8a929c"  # grid lines, secondary text
SATURATED = "#d55e00"  # clipped pixels
FRAME_MAP = "gray"

# Blue belongs to the truth. Methods: Okabe-Ito for those that share most figures, Paul Tol's "muted" for the rest.
TRUTH = "#0096d6"
METHOD_COLOURS = {
    "truth": TRUTH,
    "limit": "#000000",
    "least-squares": "#777777",
    "ista": "#e69f00",
    "fista": "#a6761d",
    "omp": "#cc79a7",
    "bregman": "#aa4499",
    "off-grid": "#009e73",
    "lista": "#999933",
    "tilista": "#ddcc77",
    "lamp": "#cc6677",
    "liht": "#661100",
    "ista-net": "#882255",
    "ista-net+": "#332288",
    "fista-net": "#44aa99",
    "dista-net": "#d55e00",
    "srcnn": "#555588",
    "edsr": "#117733",
}
_SPARE = ("#cc6677", "#117733", "#882255", "#999933", "#aa4499", "#44aa99", "#661100", "#555588")

STYLE = {
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "axes.facecolor": "white",
    "figure.dpi": 110,
    "savefig.dpi": 110,
    "figure.constrained_layout.use": True,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "image.cmap": FRAME_MAP,
    "image.interpolation": "nearest",
    "axes.prop_cycle": plt.cycler(color=["#4477aa", "#aa3377", "#228833", "#ccbb44", "#66ccee", "#bbbbbb"]),
}


def style() -> AbstractContextManager:
    """Context manager with the book's settings: ``with style(): ...``."""
    return plt.rc_context(STYLE)


def use_style() -> None:
    """Apply the book's settings to all later figures of a notebook."""
    plt.rcParams.update(STYLE)


def method_colour(name: str) -> str:
    """The colour of a method, the same in every figure; a name that is not listed gets a fixed spare one.

    >>> method_colour("DISTA-Net") == method_colour("dista-net")
    True
    """
    key = name.lower().replace("_", "-").replace(" ", "-")
    return METHOD_COLOURS.get(key) or _SPARE[zlib.crc32(key.encode()) % len(_SPARE)]


def show_frame(
    frame,
    ax: Axes | None = None,
    *,
    targets: Targets | None = None,
    estimate: Targets | None = None,
    method: str | None = None,
    zoom: int | None = None,
    grid: bool = True,
    values: bool = False,
    full_scale: float | None = None,
    vmax: float | None = None,
    title: str | None = None,
    labels: bool = True,
) -> Axes:
    """Draw one frame, and on it what is true and what was estimated.

    Parameters
    ----------
    frame : array (rows, columns) or (1, rows, columns)
        Grey levels.
    ax : matplotlib axes, optional
        Where to draw; by default a new figure.
    targets, estimate : Targets of one frame, optional
        Truth (open circles) and estimate (crosses, with error bars where ``sigma`` is predicted).
    method : str, optional
        Whose estimate it is; sets the colour of the crosses.
    zoom : int, optional
        Show only this many pixels on each side of the pixel that holds the cluster (or the brightest one): 1 shows 3 x 3 pixels.
    grid : bool
        Draw the pixel borders.
    values : bool
        Write each pixel's grey level into it.
    full_scale : float, optional
        Mark the pixels at or above this value as saturated.
    vmax : float, optional
        Grey level that is drawn white; by default the brightest pixel.
    title : str, optional
        Title of the axes.
    labels : bool
        Name the axes "x (row)" and "y (column)".

    Returns
    -------
    matplotlib axes
    """
    frame = _one_frame(frame)
    if ax is None:
        with style():
            ax = plt.figure(figsize=(3.6, 3.6)).subplots()
    ax.imshow(frame, cmap=FRAME_MAP, vmin=0, vmax=vmax or max(float(frame.max()), 1.0), interpolation="nearest")
    _frame_axes(ax, frame.shape, _window(frame, zoom, targets, estimate), grid, labels, title)
    if values:
        _write_values(ax, frame, vmax or frame.max())
    if full_scale is not None:
        _mark_saturated(ax, frame, full_scale)
    if targets is not None:
        show_targets(targets, ax)
    if estimate is not None:
        show_targets(estimate, ax, kind="estimate", method=method)
    return ax


def show_targets(
    targets: Targets, ax: Axes, *, kind: str = "truth", method: str | None = None, label: str | None = None, size: float = 9, width: float = 2
) -> None:
    """Mark the targets of one frame: open circles if ``kind`` is "truth", crosses with error bars if it is "estimate"; ``size`` and ``width`` in points."""
    if len(targets) != 1:
        raise ValueError(f"show_targets draws the targets of one frame; got {len(targets)}. Pick one: targets[0]")
    x, y = targets.xy[0, : targets.count[0]].T
    if kind == "truth":
        ax.plot(y, x, "o", ms=size, mfc="none", mec=TRUTH, mew=width, ls="", label=label)
    elif kind == "estimate":
        colour = method_colour(method or "dista-net")
        if targets.sigma is not None:
            sx, sy = targets.sigma[0, : targets.count[0]].T
            bars = ax.errorbar(y, x, xerr=sy, yerr=sx, fmt="none", ecolor=colour, elinewidth=1.3, capsize=0)
            for line in bars[2]:
                line.set_path_effects(_halo(2.8))
        ax.plot(y, x, "x", ms=size * 0.8, color=colour, mew=width, ls="", label=label or method, path_effects=_halo(1.8 * width))
    else:
        raise ValueError(f'show_targets: kind must be "truth" or "estimate"; got {kind!r}')


def show_light(targets: Targets, plane: FocalPlane, ax: Axes, *, zoom: int = 1, samples: int = 40, title: str | None = None, labels: bool = True) -> Axes:
    """The light that falls on the focal plane before any pixel integrates it, with the pixel borders drawn over it."""
    rows, columns = plane.shape
    fine_x = (np.arange(rows * samples) + 0.5) / samples - 0.5
    fine_y = (np.arange(columns * samples) + 0.5) / samples - 0.5
    light = np.zeros((len(fine_x), len(fine_y)))
    for (x, y), s in zip(targets.xy[0, : targets.count[0]], targets.intensity[0]):
        light += s * np.outer(np.exp(-0.5 * ((fine_x - x) / plane.sigma) ** 2), np.exp(-0.5 * ((fine_y - y) / plane.sigma) ** 2))
    ax.imshow(light, cmap=FRAME_MAP, vmin=0, extent=(-0.5, columns - 0.5, rows - 0.5, -0.5), interpolation="bilinear")
    _frame_axes(ax, plane.shape, _window(np.zeros(plane.shape), zoom, targets), True, labels, title)
    return ax


def show_subpixels(
    image, grid: SubpixelGrid, ax: Axes, *, targets: Targets | None = None, zoom: int | None = None, title: str | None = None, labels: bool = True
) -> Axes:
    """A sub-pixel image in the coordinates of its frame: thick lines are pixel borders, thin ones sub-pixel borders."""
    rows, columns = grid.frame_shape
    image = np.asarray(image).reshape(grid.shape)
    ax.imshow(image, cmap=FRAME_MAP, vmin=0, vmax=max(float(image.max()), 1e-9), extent=(-0.5, columns - 0.5, rows - 0.5, -0.5), interpolation="nearest")
    coarse = image.reshape(rows, grid.ratio, columns, grid.ratio).sum((1, 3))
    _frame_axes(ax, grid.frame_shape, _window(coarse, zoom, targets), True, labels, title)
    for draw, size in ((ax.axhline, rows), (ax.axvline, columns)):
        for border in np.arange(1, size * grid.ratio) / grid.ratio - 0.5:
            draw(border, color=FAINT, lw=0.35)
    if targets is not None:
        show_targets(targets, ax)
    return ax


def show_matrix(matrix, ax: Axes, *, row_block: int | None = None, column_block: int | None = None, title: str | None = None) -> Axes:
    """A non-negative matrix as an image (white is zero); lines separate blocks of rows and of columns."""
    matrix = np.asarray(matrix)
    ax.imshow(matrix, cmap="Blues", vmin=0, aspect="auto", interpolation="nearest" if matrix.shape[1] < 200 else "antialiased")
    for draw, block, size in ((ax.axhline, row_block, matrix.shape[0]), (ax.axvline, column_block, matrix.shape[1])):
        for border in np.arange(block, size, block) - 0.5 if block else ():
            draw(border, color=FAINT, lw=0.4)
    ax.set_title(title or "")
    ax.spines[:].set_visible(True)
    return ax


def draw_axes_reminder(ax: Axes, shape=(11, 11)) -> None:
    """The loud picture of the convention: an arrow x down the rows, an arrow y along the columns, both from pixel (0, 0)."""
    rows, columns = shape
    for tip, name, place in (((0, rows * 0.42), "x = row", (0.35, rows * 0.36)), ((columns * 0.42, 0), "y = column", (columns * 0.2, 0.85))):
        ax.annotate("", tip, (0, 0), arrowprops=dict(arrowstyle="-|>", lw=2.4, color=SATURATED, mutation_scale=16, shrinkA=0))
        ax.text(*place, name, color=SATURATED, weight="bold", ha="left", va="center", path_effects=_halo(2.5))
    ax.plot(0, 0, "o", color=SATURATED, ms=6)


def legend(ax: Axes, method: str | None = None) -> None:
    """Explain the marks below the axes: truth, and a method's estimate where one is named."""
    ax.plot([], [], "o", mfc="none", mec=TRUTH, mew=2, ms=8, ls="", label="truth")
    if method:
        ax.plot([], [], "x", color=method_colour(method), mew=2, ms=7, ls="", label=method)
    handles = ax.get_lines()[-(2 if method else 1) :]
    ax.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)


# ---- details -------------------------------------------------------------------------------------------------------------


def _halo(width: float, colour: str = "white"):
    return [effects.Stroke(linewidth=width, foreground=colour), effects.Normal()]


def _one_frame(frame) -> np.ndarray:
    frame = np.asarray(frame)
    if frame.ndim == 3 and len(frame) == 1:
        frame = frame[0]
    if frame.ndim != 2:
        raise ValueError(f"show_frame draws one frame, an array (rows, columns); got shape {frame.shape}. Pick one: frames[0]")
    return frame


def _window(frame: np.ndarray, zoom: int | None, *clusters: Targets | None) -> tuple[float, float, float, float]:
    """Row and column limits [px] of the part to show."""
    rows, columns = frame.shape
    if zoom is None:
        return -0.5, rows - 0.5, -0.5, columns - 0.5
    known = [t for t in clusters if t is not None and t.count[0] > 0]
    row, column = known[0].cell[0] if known else np.unravel_index(np.argmax(frame), frame.shape)
    reach = zoom + 0.5
    row = min(max(row, reach - 0.5), rows - 0.5 - reach) if rows > 2 * reach else (rows - 1) / 2
    column = min(max(column, reach - 0.5), columns - 0.5 - reach) if columns > 2 * reach else (columns - 1) / 2
    return max(row - reach, -0.5), min(row + reach, rows - 0.5), max(column - reach, -0.5), min(column + reach, columns - 0.5)


def _frame_axes(ax: Axes, shape, window, grid: bool, labels: bool, title: str | None) -> None:
    top, bottom, left, right = window
    if grid:
        for draw, size in ((ax.axhline, shape[0]), (ax.axvline, shape[1])):
            for border in np.arange(size + 1) - 0.5:
                draw(border, color=FAINT, lw=0.7, alpha=0.8)
    ax.set(xlim=(left, right), ylim=(bottom, top), aspect="equal", title=title or "")
    step = max(1, round((right - left) / 6))
    for axis, low, high in ((ax.xaxis, left, right), (ax.yaxis, top, bottom)):
        ticks = np.arange(np.ceil(low), high + 1e-9, 1)
        axis.set_ticks(ticks[ticks % step == 0])
    ax.spines[:].set_visible(True)
    if labels:
        ax.set(xlabel="y (column) [px]", ylabel="x (row) [px]")


def _write_values(ax: Axes, frame: np.ndarray, vmax: float) -> None:
    digits = 0 if np.issubdtype(frame.dtype, np.integer) else 1
    bottom, top = ax.get_ylim()
    left, right = ax.get_xlim()
    for i, j in np.ndindex(frame.shape):
        if top < i < bottom and left < j < right:
            ink = "white" if frame[i, j] < 0.55 * vmax else "black"
            ax.text(j, i, f"{frame[i, j]:.{digits}f}", ha="center", va="center", color=ink, fontsize=8, clip_on=True)


def _mark_saturated(ax: Axes, frame: np.ndarray, full_scale: float) -> None:
    for i, j in np.argwhere(frame >= full_scale):
        ax.fill([j + 0.2, j + 0.46, j + 0.46], [i - 0.46, i - 0.46, i - 0.2], color=SATURATED, lw=0)


def show_signed(
    values,
    ax: Axes,
    *,
    grid: SubpixelGrid | None = None,
    targets: Targets | None = None,
    zoom: int | None = None,
    limit: float | None = None,
    numbers: bool = False,
    title: str | None = None,
    labels: bool = True,
) -> Axes:
    """An image that may be negative: white is zero, orange positive, purple negative.

    With ``grid`` it is a sub-pixel image in its frame's coordinates, ``zoom`` pixels about the cluster; without, a small matrix such as a kernel.
    ``limit`` is the value of the deepest colours, by default the largest magnitude; ``numbers`` writes the entries.
    """
    values = np.asarray(values)
    limit = limit or max(float(abs(values).max()), 1e-9)
    if grid is None:
        ax.imshow(values, cmap="PuOr_r", vmin=-limit, vmax=limit, interpolation="nearest")
        ax.set(xticks=[], yticks=[], title=title or "")
        ax.spines[:].set_visible(True)
    else:
        rows, columns = grid.frame_shape
        ax.imshow(values, cmap="PuOr_r", vmin=-limit, vmax=limit, extent=(-0.5, columns - 0.5, rows - 0.5, -0.5), interpolation="nearest")
        coarse = abs(values).reshape(rows, grid.ratio, columns, grid.ratio).sum((1, 3))
        _frame_axes(ax, grid.frame_shape, _window(coarse, zoom, targets), True, labels, title)
    if numbers:
        for i, j in np.ndindex(values.shape):
            dark = values[i, j] < -0.5 * limit or values[i, j] > 0.75 * limit
            ax.text(j, i, f"{values[i, j]:.1f}", ha="center", va="center", fontsize=8, color="white" if dark else INK)
    if targets is not None:
        show_targets(targets, ax)
    return ax
