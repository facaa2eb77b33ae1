"""The metric explorer: drag detections about true targets and watch CSO-mAP, in a notebook or in the static book.

It lives twice, as :mod:`csist.widgets.widgets` explains: with a kernel through anywidget, and without one as an inlined module that computes the
metric itself. The page's numbers are those of :mod:`csist.metrics`; the tests hold the two together.
"""
from __future__ import annotations

import base64
import html
import io
import math

import numpy as np

from csist.metrics import DISTANCE_THRESHOLDS, CsoMap, cso_map
from csist.scenes import Targets
from csist.widgets.widgets import HERE, anywidget, static_html, traitlets

MOST_TARGETS, MOST_DETECTIONS, TOP_SCORE = 6, 12, 300.0  # what the picture can show and the slider can reach


class MetricExplorer(anywidget.AnyWidget):
    """Drag true targets and detections over one pixel and watch matches, precision, recall and CSO-mAP (book chapter "Keeping score").

    Parameters
    ----------
    targets : list of [x, y]
        Row and column of the true targets [px], up to six.
    detections : list of [x, y, score]
        Row and column [px] and ranking score, 0 to 300 (grey levels, say; only the order matters), up to twelve.
    threshold : float
        Distance threshold whose matches are shown [px]: 0.05, 0.10, 0.15, 0.20 or 0.25.

    >>> explorer = MetricExplorer(targets=[[5.0, 5.0]], detections=[[5.0, 5.12, 240.0]])
    >>> explorer.result
    CSO-mAP 60.00 (AP-05 0.00, AP-10 0.00, AP-15 100.00, AP-20 100.00, AP-25 100.00; 1 detections, 1 targets)
    """

    _esm = HERE / "metric_explorer.js"
    _css = HERE / "metric_explorer.css"
    targets = traitlets.List([[4.80, 4.75], [4.80, 5.30], [5.30, 5.00]]).tag(sync=True)
    detections = traitlets.List([[4.80, 4.87, 240.0], [4.76, 4.75, 200.0], [5.30, 5.18, 180.0], [4.80, 5.23, 150.0]]).tag(sync=True)
    threshold = traitlets.Float(0.15).tag(sync=True)
    thresholds = traitlets.List(list(DISTANCE_THRESHOLDS), read_only=True).tag(sync=True)

    @traitlets.validate("targets")
    def _check_targets(self, proposal):
        return _rows(proposal["value"], "targets", "[x, y]", 2, MOST_TARGETS)

    @traitlets.validate("detections")
    def _check_detections(self, proposal):
        rows = _rows(proposal["value"], "detections", "[x, y, score]", 3, MOST_DETECTIONS)
        wrong = [row[2] for row in rows if not 0 <= row[2] <= TOP_SCORE]
        if wrong:
            raise traitlets.TraitError(
                f"MetricExplorer: scores must be from 0 to {TOP_SCORE:g}, the range of the slider; got {wrong[0]}. Only their order matters: rescale them"
            )
        return rows

    @traitlets.validate("threshold")
    def _check_threshold(self, proposal):
        nearest = min(self.thresholds, key=lambda t: abs(t - proposal["value"]))
        if not math.isclose(nearest, proposal["value"], abs_tol=1e-9):
            raise traitlets.TraitError(f"MetricExplorer: threshold must be one of {self.thresholds} px; got {proposal['value']}")
        return nearest

    @property
    def truth(self) -> Targets:
        """The true targets as they stand now, one frame; their intensities, which the metric ignores, are 1."""
        return Targets.from_lists([np.reshape(self.targets, (-1, 2))], [np.ones(len(self.targets))])

    @property
    def estimate(self) -> Targets:
        """The detections as they stand now, one frame; their score is their intensity as well."""
        rows = np.reshape(self.detections, (-1, 3))
        return Targets.from_lists([rows[:, :2]], [rows[:, 2]], [rows[:, 2]])

    @property
    def result(self) -> CsoMap:
        """CSO-mAP of the present state, computed in Python; the page computes the same numbers."""
        return cso_map(self.estimate, self.truth, self.thresholds)

    def __repr__(self) -> str:  # without a memory address: notebook outputs stay the same from run to run
        return f"MetricExplorer({len(self.targets)} targets, {len(self.detections)} detections, threshold={self.threshold:g} px)"

    def state(self) -> dict:
        """What the page needs to know."""
        return {name: getattr(self, name) for name in ("targets", "detections", "threshold", "thresholds")}

    def static_html(self) -> str:
        """The explorer for a page without a kernel."""
        esm, css = ((HERE / f"metric_explorer.{kind}").read_text(encoding="utf8") for kind in ("js", "css"))
        alt = html.escape(f"Pixel with {len(self.targets)} targets and {len(self.detections)} detections; {self.result}", quote=True)
        picture = base64.b64encode(self.png()).decode()
        return static_html(esm, css, self.state(), f'<img alt="{alt}" src="data:image/png;base64,{picture}">')

    def png(self) -> bytes:
        """The pixel and the five average precisions as a picture, for print and for readers without JavaScript."""
        from matplotlib.figure import Figure

        from csist.plotting import TRUTH, show_targets, style

        result = self.result
        points = np.array([*self.targets] or [row[:2] for row in self.detections] or [[5.0, 5.0]])
        row, column = np.rint(points.mean(0))
        with style():
            figure = Figure(figsize=(6.4, 3.2), dpi=80)
            left, right = figure.subplots(1, 2)
            left.fill([column - 0.5, column + 0.5, column + 0.5, column - 0.5], [row - 0.5, row - 0.5, row + 0.5, row + 0.5], fc="#eef1f4", ec="#5b636d")
            left.set(xlim=(column - 0.65, column + 0.65), ylim=(row + 0.65, row - 0.65), aspect="equal", xlabel="y (column) [px]", ylabel="x (row) [px]")
            show_targets(self.truth, left)
            show_targets(self.estimate, left, kind="estimate")
            right.bar([f"{t:.2f}" for t in result.thresholds], 100 * np.nan_to_num(result.ap), color=TRUTH)
            right.set(ylim=(0, 105), xlabel="distance threshold [px]", ylabel="AP [%]", title=f"CSO-mAP {100 * result.map:.1f} %")
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", metadata={"Software": None})
        return buffer.getvalue()

    def _repr_mimebundle_(self, **kwargs):
        bundle = super()._repr_mimebundle_(**kwargs)
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle or {}, {})
        picture = base64.b64encode(self.png()).decode()
        return {**data, "text/plain": repr(self), "text/html": self.static_html(), "image/png": picture}, metadata


def _rows(value, name: str, wanted: str, width: int, most: int) -> list[list[float]]:
    """Plain lists of finite numbers, or an error that names the trait."""
    try:
        rows = np.asarray(value, dtype=float).reshape(len(value), width)
    except (TypeError, ValueError):
        raise traitlets.TraitError(f"MetricExplorer: {name} must be a list of {wanted}; got {value!r}") from None
    if len(rows) > most or not np.isfinite(rows).all():
        raise traitlets.TraitError(f"MetricExplorer shows up to {most} {name} with finite numbers; got {len(rows)}")
    return rows.tolist()
