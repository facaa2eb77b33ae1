"""The PSF explorer: one front-end module, two homes.

In JupyterLab and Colab a kernel is listening: anywidget keeps the Python object and the page in step. In the static book there is none: the same
module is inlined into the page and computes the frame itself. One cell output offers both, and a picture for everything that runs no JavaScript.
"""
from __future__ import annotations

import base64
import html
import io
import json
import re
from pathlib import Path

try:
    import anywidget
    import traitlets
except ImportError as error:  # the core package does not need them
    raise ImportError('the widgets need anywidget; install it with: pip install "csist[book]"') from error

import numpy as np

from csist.imaging import FocalPlane
from csist.limits import crlb, error_ellipse, position_covariance
from csist.scenes import Targets

HERE = Path(__file__).parent

# What anywidget's model offers, without a kernel behind it.
STATIC_MODEL = """
class StaticModel {
  constructor(state) { this.state = state; this.listeners = {}; }
  get(k) { return this.state[k]; }
  set(k, v) { this.state[k] = v; (this.listeners["change:" + k] || []).slice().forEach((f) => f()); }
  save_changes() {}
  send() {}
  on(e, f) { (this.listeners[e] ||= []).push(f); }
  off(e, f) { this.listeners[e] = f ? (this.listeners[e] || []).filter((g) => g !== f) : []; }
}
"""


def static_html(esm: str, css: str, state: dict, fallback: str = "") -> str:
    """HTML that mounts a front-end module without a kernel: a host element, its style, and one inline module script.

    A browser refuses to load a module file from ``file://`` but runs an inline one, so the source itself goes into the page, its default export
    turned into a constant. ``fallback`` is what a reader without JavaScript sees.
    """
    if re.search(r"^\s*import\b", esm, re.M) or re.search(r"</script|<!--", esm, re.I):
        raise ValueError("static_html: the module must import nothing and must not contain '</script' or '<!--'")
    body, exports = re.subn(r"^export default ", "const explorer = ", esm, flags=re.M)
    if exports != 1 or re.search(r"^\s*export\b", body, re.M):
        raise ValueError("static_html: the module must have exactly one export, the default")
    return (
        f'<div class="csist-widget">{fallback}</div>\n<style>{css}</style>\n<script type="module">\n'
        # A module script does not know its own element: claim the first host that nobody has claimed.
        'const el = document.querySelector(".csist-widget:not([data-mounted])");\n'
        'el.setAttribute("data-mounted", "");\n'
        f"{STATIC_MODEL}\n{body}\nexplorer.render({{ model: new StaticModel({_script_json(state)}), el }});\n</script>"
    )


def join_modules(folder: Path, name: str, **before: str) -> tuple[str, str]:
    """Module and style of a front end that builds on earlier ones: their files go before it, each default export as a constant under its keyword.

    So optics, sensor and drawing are written down once, and the page still imports nothing: ``join_modules(HERE, "ista_explorer", psf="psf_explorer")``.
    """
    parts = []
    for constant, file in before.items():
        body, exports = re.subn(r"^export default ", "return ", (folder / f"{file}.js").read_text(encoding="utf8"), flags=re.M)
        if exports != 1:
            raise ValueError(f"{file}.js must have exactly one default export")
        parts.append(f"const {constant} = (() => {{\n{body}\n}})();")
    styles = [folder / f"{file}.css" for file in (*before.values(), name)]
    parts.append((folder / f"{name}.js").read_text(encoding="utf8"))
    return "\n".join(parts), "\n".join(style.read_text(encoding="utf8") for style in styles if style.exists())


def _script_json(value) -> str:
    """JSON that is safe inside a script element."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


class PsfExplorer(anywidget.AnyWidget):
    """Drag one to five point targets over the focal plane and watch the frame (book chapter "The focal plane").

    Parameters
    ----------
    targets : list of [x, y, intensity]
        Row and column [px] and total flux [grey levels]; one to five targets.
    sigma : float
        Standard deviation of the PSF [px], 0.2 to 1.5.
    bits : int or None
        Depth of the digitiser; None shows unrounded values.
    clip : bool
        Saturate at full scale (255 for 8 bits).
    size : int
        Rows and columns of the frame.
    values : bool
        Write the grey levels into the magnified pixels.
    ellipses : bool
        Draw each target's smallest possible error, one standard deviation, and list it (book chapter "How close is too close").

    >>> explorer = PsfExplorer(targets=[[5.0, 5.0, 240.0]])
    >>> explorer.frame[5, 4:7].tolist()
    [26, 112, 26]
    >>> explorer.bounds.round(4).tolist()
    [[0.0025, 0.0025, 0.5599]]
    """

    _esm = HERE / "psf_explorer.js"
    _css = HERE / "psf_explorer.css"
    targets = traitlets.List([[4.8, 5.1, 240.0], [5.25, 4.9, 235.0]]).tag(sync=True)
    sigma = traitlets.Float(0.5).tag(sync=True)
    bits = traitlets.Int(8, allow_none=True, min=1, max=16).tag(sync=True)
    clip = traitlets.Bool(True).tag(sync=True)
    size = traitlets.Int(11, min=5, max=25).tag(sync=True)
    values = traitlets.Bool(False).tag(sync=True)
    ellipses = traitlets.Bool(False).tag(sync=True)

    @traitlets.validate("targets")
    def _check_targets(self, proposal):
        rows = proposal["value"]
        try:
            rows = np.asarray(rows, dtype=float).reshape(len(rows), 3).tolist()
        except (TypeError, ValueError):
            raise traitlets.TraitError(f"PsfExplorer: targets must be a list of [x, y, intensity]; got {rows!r}") from None
        if not 1 <= len(rows) <= 5 or not np.isfinite(rows).all():
            raise traitlets.TraitError(f"PsfExplorer shows one to five targets with finite numbers; got {len(rows)}")
        return rows

    @traitlets.validate("sigma")
    def _check_sigma(self, proposal):
        if not 0.2 <= proposal["value"] <= 1.5:
            raise traitlets.TraitError(f"PsfExplorer: sigma must be from 0.2 to 1.5 px, the range of its slider; got {proposal['value']}")
        return proposal["value"]

    @property
    def plane(self) -> FocalPlane:
        """Optics and sensor as they are set now."""
        return FocalPlane((self.size, self.size), self.sigma, self.bits, self.clip)

    @property
    def scene(self) -> Targets:
        """The targets as they stand now, one frame."""
        rows = np.array(self.targets)
        return Targets(rows[None, :, :2], rows[None, :, 2], [len(rows)])

    @property
    def frame(self) -> np.ndarray:
        """The frame (size, size), computed in Python; the page computes the same numbers."""
        return self.plane.render(self.scene)[0]

    @property
    def bounds(self) -> np.ndarray:
        """Cramér–Rao bounds' standard deviations of x [px], y [px] and intensity [grey levels] of each target, (K, 3), by :func:`csist.limits.crlb`.

        Rounding is the only noise, saturated pixels are censored, nothing is known beforehand. The page computes the same numbers. Without rounding
        (``bits=None``) there is no noise, and a ValueError says so.
        """
        return crlb(self.scene, self.plane)[0]

    def __repr__(self) -> str:  # without a memory address: notebook outputs stay the same from run to run
        return f"PsfExplorer({len(self.targets)} targets, sigma={self.sigma:g} px, bits={self.bits})"

    def state(self) -> dict:
        """What the page needs to know."""
        return {name: getattr(self, name) for name in ("targets", "sigma", "bits", "clip", "size", "values", "ellipses")}

    def static_html(self) -> str:
        """The explorer for a page without a kernel."""
        esm, css = ((HERE / f"psf_explorer.{kind}").read_text(encoding="utf8") for kind in ("js", "css"))
        alt = html.escape(f"Frame of {len(self.targets)} point targets, PSF width {self.sigma:g} px", quote=True)
        picture = base64.b64encode(self.png()).decode()
        return static_html(esm, css, self.state(), f'<img alt="{alt}" src="data:image/png;base64,{picture}">')

    def png(self) -> bytes:
        """The frame as a picture, for print and for readers without JavaScript."""
        from matplotlib.figure import Figure

        from csist.plotting import show_frame, style

        with style():
            figure = Figure(figsize=(3.4, 3.4), dpi=80)
            ax = show_frame(self.frame, figure.subplots(), targets=self.scene, full_scale=self.plane.full_scale)
            if self.ellipses and self.bits is not None:
                self._draw_ellipses(ax)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", metadata={"Software": None})
        return buffer.getvalue()

    def _draw_ellipses(self, ax) -> None:
        from matplotlib.patches import Ellipse

        shapes = np.transpose(error_ellipse(position_covariance(self.scene, self.plane)[0]))  # (K, 3)
        for (x, y), (major, minor, angle) in zip(self.scene.xy[0], shapes):
            if np.isfinite(major):
                ax.add_patch(Ellipse((y, x), 2 * minor, 2 * major, angle=-np.degrees(angle), fc="none", ec="#ffb3e6", lw=1.5))

    def _repr_mimebundle_(self, **kwargs):
        bundle = super()._repr_mimebundle_(**kwargs)
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle or {}, {})
        picture = base64.b64encode(self.png()).decode()
        return {**data, "text/plain": repr(self), "text/html": self.static_html(), "image/png": picture}, metadata
