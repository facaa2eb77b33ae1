"""The ISTA explorer: sparse recovery that runs while you look (book chapter "Sparse recovery").

Like the PSF explorer it has two homes: with a kernel anywidget keeps the Python object and the page in step; in the static book the same front-end
module is inlined and iterates in the reader's browser.
"""
from __future__ import annotations

import base64
import html
import io
from pathlib import Path

from csist.widgets.widgets import HERE, join_modules, static_html  # first: it says how to install what is missing

import anywidget  # isort: skip
import numpy as np
import traitlets

from csist.imaging import FocalPlane, SubpixelGrid
from csist.scenes import Targets
from csist.solvers.ista import SparseResult, ista

MOST = 3000  # iterations: the reference toolkit's number


def front_end(folder: Path = HERE) -> tuple[str, str]:
    """Module and style of the page: the PSF explorer's first, as the constant ``psf``, so that optics and sensor are written down once."""
    return join_modules(folder, "ista_explorer", psf="psf_explorer")


class IstaExplorer(anywidget.AnyWidget):
    """Drag one to three point targets and watch ISTA or FISTA look for them (book chapter "Sparse recovery").

    Optics and sensor are those of CSIST-100K: sigma = 0.5 px, 11 x 11 pixels, 8 bits, clipped. The iteration starts from zero with the step
    :math:`1/\\lVert G\\rVert^2` and is never stopped early.

    Parameters
    ----------
    targets : list of [x, y, intensity]
        Row and column [px] and total flux [grey levels]; one to three targets on the frame.
    sparsity : float
        Weight lambda of the l1 norm [grey levels], 0.01 to 100.
    ratio : {3, 5, 7}
        Sub-pixels along a pixel's side, c.
    momentum : bool
        FISTA instead of ISTA.
    iterations : int
        How many iterations the estimate shown has had, 0 to 3000.

    >>> explorer = IstaExplorer(targets=[[5.0, 5.0, 240.0]], iterations=100)
    >>> explorer.image.shape, round(float(explorer.result.objective[-1, 0]), 1)
    ((33, 33), 360.5)
    """

    _esm, _css = front_end()
    targets = traitlets.List([[5.33, 4.70, 242.0], [4.70, 5.30, 236.0]]).tag(sync=True)
    sparsity = traitlets.Float(1.0).tag(sync=True)
    ratio = traitlets.Enum([3, 5, 7], 3).tag(sync=True)
    momentum = traitlets.Bool(False).tag(sync=True)
    iterations = traitlets.Int(60, min=0, max=MOST).tag(sync=True)

    @traitlets.validate("targets")
    def _check_targets(self, proposal):
        rows = proposal["value"]
        try:
            rows = np.asarray(rows, dtype=float).reshape(len(rows), 3)
        except (TypeError, ValueError):
            raise traitlets.TraitError(f"IstaExplorer: targets must be a list of [x, y, intensity]; got {rows!r}") from None
        if not 1 <= len(rows) <= 3 or not np.isfinite(rows).all() or (rows[:, 2] < 0).any():
            raise traitlets.TraitError(f"IstaExplorer shows one to three targets with finite numbers and no negative intensity; got {rows.tolist()!r}")
        if (abs(rows[:, :2] - 5) > 5.5).any():
            raise traitlets.TraitError(f"IstaExplorer: the frame reaches from -0.5 to 10.5 px; got targets at {rows[:, :2].tolist()!r}")
        return rows.tolist()

    @traitlets.validate("sparsity")
    def _check_sparsity(self, proposal):
        if not 0.0099 <= proposal["value"] <= 101:
            raise traitlets.TraitError(f"IstaExplorer: sparsity must be from 0.01 to 100 grey levels, the range of its slider; got {proposal['value']}")
        return proposal["value"]

    @property
    def plane(self) -> FocalPlane:
        """Optics and sensor, those of CSIST-100K."""
        return FocalPlane()

    @property
    def grid(self) -> SubpixelGrid:
        """The candidate positions."""
        return SubpixelGrid(self.plane.shape, self.ratio)

    @property
    def scene(self) -> Targets:
        """The targets as they stand now, one frame."""
        rows = np.array(self.targets)
        return Targets(rows[None, :, :2], rows[None, :, 2], [len(rows)])

    @property
    def frame(self) -> np.ndarray:
        """The frame (11, 11), uint8."""
        return self.plane.render(self.scene)[0]

    @property
    def result(self) -> SparseResult:
        """The estimate after ``iterations`` and the objective on the way, computed in Python; the page computes the same numbers."""
        settings = {"sparsity": self.sparsity, "max_iterations": self.iterations, "momentum": self.momentum, "tolerance": 0}
        return ista(self.frame[None], self.plane, self.grid, **settings)

    @property
    def image(self) -> np.ndarray:
        """The estimate (11c, 11c) [grey levels]."""
        return self.result.image[0]

    def __repr__(self) -> str:  # without a memory address: notebook outputs stay the same from run to run
        name = "FISTA" if self.momentum else "ISTA"
        return f"IstaExplorer({len(self.targets)} targets, lambda={self.sparsity:g}, c={self.ratio}, {self.iterations} iterations of {name})"

    def state(self) -> dict:
        """What the page needs to know."""
        return {name: getattr(self, name) for name in ("targets", "sparsity", "ratio", "momentum", "iterations")}

    def static_html(self) -> str:
        """The explorer for a page without a kernel."""
        alt = html.escape(f"Frame of {len(self.targets)} point targets, and the estimate after {self.iterations} iterations", quote=True)
        return static_html(*front_end(), self.state(), f'<img alt="{alt}" src="data:image/png;base64,{base64.b64encode(self.png()).decode()}">')

    def png(self) -> bytes:
        """Frame and estimate as a picture, for print and for readers without JavaScript."""
        from matplotlib.figure import Figure

        from csist.plotting import show_frame, show_signed, style

        with style():
            figure = Figure(figsize=(6.4, 3.2), dpi=80)
            left, right = figure.subplots(1, 2)
            show_frame(self.frame, left, targets=self.scene, zoom=2, full_scale=self.plane.full_scale, title="frame")
            show_signed(self.image, right, grid=self.grid, targets=self.scene, zoom=2, title=f"after {self.iterations} iterations")
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", metadata={"Software": None})
        return buffer.getvalue()

    def _repr_mimebundle_(self, **kwargs):
        bundle = super()._repr_mimebundle_(**kwargs)
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle or {}, {})
        picture = base64.b64encode(self.png()).decode()
        return {**data, "text/plain": repr(self), "text/html": self.static_html(), "image/png": picture}, metadata
