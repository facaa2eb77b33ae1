"""The unmixing explorer: the off-grid solver answers while you drag (book chapter "Beyond the grid").

Like the other explorers it has two homes: with a kernel anywidget keeps the Python object and the page in step; in the static book the same front-end
module is inlined. The solver itself runs in the reader's browser (``offgrid_solver.js``), with every number and table that it needs handed over from here;
the tests hold its answers to :func:`csist.solvers.offgrid.unmix_offgrid`'s.
"""
from __future__ import annotations

import base64
import html
import io

from csist.widgets.widgets import HERE, join_modules, static_html  # first: it says how to install what is missing

import anywidget  # isort: skip
import numpy as np
import traitlets

from csist.imaging import FocalPlane
from csist.metrics import DISTANCE_THRESHOLDS
from csist.scenes import Targets
from csist.solvers import offgrid

TIERS = ("fast", "standard")  # "accurate" runs sequential Monte Carlo, which the page does without
REACH = 1.0  # px that targets may lie from the middle of their common pixel; a single cluster then holds them all
MOST_INTENSITY = 320.0  # grey levels


def front_end() -> tuple[str, str]:
    """Module and style of the page: optics and drawing of the PSF explorer as the constant ``psf``, the solver as ``offgrid``."""
    return join_modules(HERE, "unmixing_explorer", psf="psf_explorer", offgrid="offgrid_solver")


def solver_settings() -> dict:
    """What the page's solver takes from Python: constants of the kernels, prior, starts, tiers, calibration, the random stream's multipliers."""
    kernels, prior = offgrid._load_kernels(), offgrid.Prior()
    starts, _, log_prior, most = offgrid._configurations(prior, kernels.Effort(**offgrid.TIERS[TIERS[-1]]), *prior.counts, 1.0)
    halves = lambda word: [int(word) >> 32, int(word) & 0xFFFFFFFF]
    return {
        "constants": {name: value for name, value in vars(kernels).items() if name.isupper() and isinstance(value, (int, float))},
        "stream": {"golden": halves(kernels.GOLDEN), "mix1": halves(kernels.MIX_1), "mix2": halves(kernels.MIX_2)},
        "prior": {"fewest": prior.counts[0], "most": most, "intensity": list(prior.intensity), "distance": prior.min_distance},
        "logPrior": log_prior[: most + 1].tolist(),
        "starts": [starts[number, :, : 3 * number].tolist() for number in range(most + 1)],
        "tiers": {tier: {"effort": offgrid.TIERS[tier], "calibration": offgrid.CALIBRATION[tier], "deviations": offgrid.DEVIATIONS[tier]} for tier in TIERS},
        "thresholds": list(DISTANCE_THRESHOLDS),
        "noise": offgrid.ROUNDING_WIDTH,
        "margin": offgrid.MARGIN,
        "nodesPerSigma": offgrid.NODES_PER_SIGMA,
        "faint": offgrid.FAINT,
        "stray": offgrid.STRAY,
        "least": offgrid.LEAST,
    }


class UnmixingExplorer(anywidget.AnyWidget):
    """Drag one to five point targets about one pixel and watch the off-grid solver find them (book chapter "Beyond the grid").

    Optics and sensor are those of CSIST-100K: sigma = 0.5 px, 11 x 11 pixels, 8 bits, clipped. So is the solver's prior: one pixel, 0.494 px between
    targets, 220 to 250 grey levels. You may break it. Needs numba (extra ``offgrid``).

    Parameters
    ----------
    targets : list of [x, y, intensity]
        Row and column [px] and total flux [grey levels, at most 320]; one to five targets on the frame, all within 1 px of one pixel's centre, in row
        and in column.
    assumed_sigma : float
        PSF width that the solver takes for true [px], 0.45 to 0.55.
    tier : {"fast", "standard"}
        How much work the solver does.
    deviations : {1, 3, 10}
        Size of the error ellipses [standard deviations].
    samples : bool
        Show the sampled answers.

    >>> UnmixingExplorer(targets=[[5.1, 4.8, 240.0]]).answer.xy.round(2).tolist()  # doctest: +SKIP
    [[[5.1, 4.8]]]
    """

    _esm, _css = front_end()
    targets = traitlets.List([[4.70, 4.78, 242.0], [5.34, 4.86, 236.0], [4.98, 5.36, 230.0]]).tag(sync=True)
    assumed_sigma = traitlets.Float(0.5).tag(sync=True)
    tier = traitlets.Enum(list(TIERS), TIERS[0]).tag(sync=True)
    deviations = traitlets.Enum([1, 3, 10], 3).tag(sync=True)
    samples = traitlets.Bool(True).tag(sync=True)
    solver = traitlets.Dict(read_only=True).tag(sync=True)

    @traitlets.default("solver")
    def _solver_settings(self):
        return solver_settings()

    @traitlets.validate("targets")
    def _check_targets(self, proposal):
        rows = proposal["value"]
        try:
            rows = np.asarray(rows, dtype=float).reshape(len(rows), 3)
        except (TypeError, ValueError):
            raise traitlets.TraitError(f"UnmixingExplorer: targets must be a list of [x, y, intensity]; got {rows!r}") from None
        if not 1 <= len(rows) <= 5 or not np.isfinite(rows).all():
            raise traitlets.TraitError(f"UnmixingExplorer shows one to five targets with finite numbers; got {rows.tolist()!r}")
        if not ((rows[:, 2] >= 0) & (rows[:, 2] <= MOST_INTENSITY)).all():
            raise traitlets.TraitError(f"UnmixingExplorer: intensities must be from 0 to {MOST_INTENSITY:g} grey levels; got {rows[:, 2].tolist()}")
        if (abs(rows[:, :2] - 5) > 5.5).any():
            raise traitlets.TraitError(f"UnmixingExplorer: the frame reaches from -0.5 to 10.5 px; got targets at {rows[:, :2].tolist()!r}")
        if (np.ceil(rows[:, :2].max(0) - REACH - 1e-9) > np.floor(rows[:, :2].min(0) + REACH + 1e-9)).any():
            raise traitlets.TraitError(
                f"UnmixingExplorer: all targets must lie within {REACH:g} px, in row and in column, of one pixel's centre; got {rows[:, :2].tolist()!r}"
            )
        return rows.tolist()

    @traitlets.validate("assumed_sigma")
    def _check_sigma(self, proposal):
        if not 0.45 <= proposal["value"] <= 0.55:
            raise traitlets.TraitError(f"UnmixingExplorer: assumed_sigma must be from 0.45 to 0.55 px, the range of its slider; got {proposal['value']}")
        return proposal["value"]

    @property
    def plane(self) -> FocalPlane:
        """Optics and sensor that make the frame, those of CSIST-100K."""
        return FocalPlane()

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
    def answer(self) -> Targets:
        """The solver's answer with ``sigma`` and ``score``, computed in Python by :func:`csist.solvers.offgrid.unmix_offgrid`; the page computes its own."""
        return offgrid.unmix_offgrid(self.frame, FocalPlane(sigma=self.assumed_sigma), tier=self.tier, threads=1)

    def __repr__(self) -> str:  # without a memory address: notebook outputs stay the same from run to run
        return f"UnmixingExplorer({len(self.targets)} targets, assumed_sigma={self.assumed_sigma:g} px, tier={self.tier!r})"

    def state(self) -> dict:
        """What the page needs to know."""
        return {name: getattr(self, name) for name in ("targets", "assumed_sigma", "tier", "deviations", "samples", "solver")}

    def static_html(self) -> str:
        """The explorer for a page without a kernel."""
        alt = html.escape(f"Pixel with {len(self.targets)} point targets, and the off-grid solver's answer", quote=True)
        return static_html(*front_end(), self.state(), f'<img alt="{alt}" src="data:image/png;base64,{base64.b64encode(self.png()).decode()}">')

    def png(self) -> bytes:
        """Frame and answer as a picture, for print and for readers without JavaScript."""
        from matplotlib.figure import Figure

        from csist.plotting import show_frame, style

        with style():
            figure = Figure(figsize=(3.8, 3.6), dpi=80)
            marks = {"targets": self.scene, "estimate": self.answer, "method": "off-grid", "full_scale": self.plane.full_scale}
            show_frame(self.frame, figure.subplots(), zoom=1, title=f"{self.answer.count[0]} found", **marks)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", metadata={"Software": None})
        return buffer.getvalue()

    def _repr_mimebundle_(self, **kwargs):
        bundle = super()._repr_mimebundle_(**kwargs)
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle or {}, {})
        picture = base64.b64encode(self.png()).decode()
        return {**data, "text/plain": repr(self), "text/html": self.static_html(), "image/png": picture}, metadata
