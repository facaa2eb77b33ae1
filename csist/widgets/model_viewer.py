"""The model viewer: what every trained network answers for a test frame, stage by stage where it has stages (book page "Gallery: what the networks see").

The answers are computed in Python, once, by :func:`viewer_data`; the page only shows them. So it needs neither a kernel nor the networks' weights, and the
same front-end module serves JupyterLab, through anywidget, and the static book, as ``csist/widgets/widgets.py`` explains.
"""
from __future__ import annotations

import base64
import html
import io
from pathlib import Path

from csist.widgets.widgets import HERE, anywidget, static_html, traitlets  # first: it says how to install what is missing

import numpy as np  # isort: skip
import torch

from csist.datasets import Frames, csist100k
from csist.evaluation import DETECTION_THRESHOLD, WINDOW, detect, has_grid, list_methods, predict, unmix, window_origin
from csist.imaging import FocalPlane, SubpixelGrid
from csist.limits import crlb
from csist.metrics import is_border, localisation, match_pairs
from csist.networks.registry import NETWORKS, load_network, read_weights, run_name, unknown_name
from csist.scenes import Targets
from csist.solvers.ista import PAPER, TUNED, unmix_ista

POOL = 1000  # test frames from which the shown ones are chosen
NEAR = 0.25  # px; the metric's largest distance threshold
RATIOS = (3, 5, 7)
SPARSE = {"ista": PAPER, "fista": TUNED}  # sparse recovery on the grid
PERFECT = "perfect"  # the sub-pixel image that holds each target's light in its own sub-pixel
COLOURS = 65  # samples of the colour map of signed images; odd, so that zero has one


# ---- which frames, which methods ---------------------------------------------------------------------------------------


def choose_frames(data: Frames, interior: int = 3, border: int = 2, hardest: int = 1) -> dict[int, str]:
    """Numbers of frames to look at, chosen by a rule and by nobody's taste, and why each is there.

    For each number of targets: the first frames whose cluster lies inside the frame, the first whose cluster's pixel touches its border, and of both kinds
    those with the largest Cramér–Rao bound (:func:`position_bound`), which no method has a part in.

    Parameters
    ----------
    data : Frames
        The frames to choose from.
    interior, border, hardest : int
        How many first ones inside, at the border, and hardest ones of both kinds for each number of targets.

    >>> choose_frames(csist100k("test", 64), interior=1, border=0, hardest=0)
    {0: 'first', 1: 'first', 8: 'first', 2: 'first', 6: 'first'}
    """
    if min(interior, border, hardest) < 0 or interior + border + hardest == 0:
        raise ValueError(f"choose_frames: interior, border and hardest must be numbers >= 0, not all 0; got {interior}, {border}, {hardest}")
    at_border, bound = is_border(data.targets), position_bound(data.targets)
    chosen = {}
    for count in np.unique(data.targets.count):
        for there, firsts in ((False, interior), (True, border)):
            numbers = np.flatnonzero((data.targets.count == count) & (at_border == there))
            hard = numbers[np.argsort(-bound[numbers], kind="stable")[:hardest]]
            chosen |= {int(k): "first" for k in numbers[:firsts]} | {int(k): "hardest" for k in hard}
    return dict(sorted(chosen.items(), key=lambda item: (data.targets.count[item[0]], at_border[item[0]], item[0])))


def position_bound(targets: Targets, plane: FocalPlane | None = None) -> np.ndarray:
    """Root mean square of the Cramér–Rao bounds of a frame's positions [px], (n,): with no prior knowledge, no unbiased method does better on average."""
    variances = crlb(targets, plane or FocalPlane())[..., :2] ** 2
    return np.sqrt(np.nansum(variances, axis=(1, 2)) / np.maximum(targets.count, 1))


def trained_methods(ratios=RATIOS, folder: Path | None = None) -> list[tuple[str, int | None]]:
    """Methods that can answer now, as pairs (name, sub-pixel ratio): sparse recovery at the first ratio, every trained network, and those without a grid."""
    from csist.reporting import weights_file

    trained = [(name, c) for c in ratios for name in NETWORKS if weights_file(run_name(name, c), folder)]
    return [*((name, ratios[0]) for name in SPARSE), *trained, ("continuous", None), ("off-grid", None)]


# ---- their answers -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def stage_images(network, frames) -> np.ndarray:
    """Estimates of an unfolded network before its first stage and after each one, (n, stages + 1, 11c, 11c); of any other network its answer alone.

    >>> network = load_network("srcnn")
    >>> stage_images(network, csist100k("test", 4).frames).shape
    (4, 1, 33, 33)
    """
    if not hasattr(network, "trajectory"):
        return predict(network, frames)[:, None]
    network = network.eval().to(memory_format=torch.channels_last)
    return torch.stack(network.trajectory(torch.from_numpy(np.ascontiguousarray(frames)).float()), dim=1).numpy()


def viewer_data(methods=None, frames: dict[int, str] | None = None, *, ratios=RATIOS, folder: Path | None = None) -> dict:
    """All that the viewer shows, as plain JSON values: frames, truth, images, detections and errors.

    Images are cut to the 5 x 5 pixels that hold the light and stored in 8 bits, each on a scale of its own: a value is ``low + step * level``, so it is
    exact to half a ``step``. Detections and errors are computed before the rounding.

    Parameters
    ----------
    methods : sequence of str, optional
        Names of methods; by default all that :func:`trained_methods` finds.
    frames : dict of int to str, optional
        Numbers of test frames, and why they are shown; by default those that :func:`choose_frames` takes of the first 1,000.
    ratios : sequence of int
        Sub-pixel ratios c at which networks are shown.
    folder : path, optional
        Holds ``weights``; by default the repository's ``reproduce``.

    Raises
    ------
    ValueError
        For an unknown method, or a frame number out of range.
    FileNotFoundError
        For a network that has not been trained at any of the ratios.
    """
    pool = csist100k("test", POOL)
    frames = choose_frames(pool) if frames is None else dict(frames)
    wrong = [number for number in frames if not 0 <= number < POOL]
    if wrong or not frames:
        raise ValueError(f"viewer_data: frames must be numbers from 0 to {POOL - 1}, at least one; got {wrong or frames}")
    numbers = list(frames)
    data = Frames(pool.frames[numbers], pool.targets[numbers])
    origin = window_origin(data.targets.cell, FocalPlane().shape[0])
    entries = [_method_entry(PERFECT, ratios[0], data, origin, folder)]
    entries += [_method_entry(name, ratio, data, origin, folder) for name, ratio in _asked_for(methods, ratios, folder)]
    return {
        "frames": [_frame_entry(number, why, data.targets[k], origin[k]) for k, (number, why) in enumerate(frames.items())],
        "pixels": _encoded(data.frames),
        "methods": entries,
        "size": FocalPlane().shape[0],
        "window": WINDOW,
        "full_scale": FocalPlane().full_scale,
        "near": NEAR,
        "threshold": DETECTION_THRESHOLD,
        "palette": _palette(),
    }


def _asked_for(methods, ratios, folder) -> list[tuple[str, int | None]]:
    known = trained_methods(ratios, folder)
    if methods is None:
        return known
    for name in methods:
        if name not in {*NETWORKS, *(method for method, _ in known)}:
            raise unknown_name(name, [name for name in list_methods() if name in NETWORKS or name in dict(known)])
        if name not in dict(known):
            load_network(name, ratios[0])  # says that and how it must be trained
    return [pair for name in methods for pair in known if pair[0] == name]


def _frame_entry(number: int, why: str, truth: Targets, origin: np.ndarray) -> dict:
    bound = float(position_bound(truth)[0])
    return {
        "number": number,
        "why": why,
        "border": bool(is_border(truth)[0]),
        "cell": truth.cell[0].tolist(),
        "origin": origin.tolist(),
        "targets": np.column_stack([truth.xy[0], truth.intensity[0]])[: truth.count[0]].tolist(),
        "bound": bound if np.isfinite(bound) else None,
    }


def _method_entry(name: str, ratio: int | None, data: Frames, origin: np.ndarray, folder: Path | None) -> dict:
    from csist.plotting import method_colour

    colour = method_colour("truth" if name == PERFECT else name)
    entry = {"name": method_key(name, ratio), "method": name, "label": _label(name, ratio), "colour": colour, "ratio": ratio}
    if not has_grid(name):
        return entry | _answers([unmix(data.frames, name)], data.targets)
    images, threshold = _images(name, ratio, data, folder)
    grid = SubpixelGrid(data.frames.shape[1:], ratio)
    estimates = [detect(images[:, stage], grid, threshold) for stage in range(images.shape[1])]
    return entry | _answers(estimates, data.targets) | pack(images, origin, ratio)


def method_key(name: str, ratio: int | None) -> str:
    """How the viewer calls a method: its name, at c = 5 and 7 with the ratio.

    >>> method_key("cfgn", 3), method_key("cfgn", 5)
    ('cfgn', 'cfgn-c5')
    """
    return name if ratio in (None, 3) else f"{name}-c{ratio}"


def _label(name: str, ratio: int | None) -> str:
    from csist.reporting import paper_values

    printed = {"fista": {"method": "FISTA"}} | {key: row for c in RATIOS for key, row in paper_values(c).items()}
    label = printed.get(name, {}).get("method", name)
    return label if ratio in (None, 3) else f"{label} c={ratio}"


def _images(name: str, ratio: int, data: Frames, folder: Path | None) -> tuple[np.ndarray, float]:
    """A method's images (n, stages + 1 or 1, 11c, 11c) and its detection threshold [grey levels]."""
    from csist.reporting import weights_file

    if name == PERFECT:
        return SubpixelGrid(data.frames.shape[1:], ratio).image(data.targets)[:, None], DETECTION_THRESHOLD
    if name in SPARSE:
        return unmix_ista(data.frames, FocalPlane(), ratio, SPARSE[name])[:, None], SPARSE[name].threshold
    return stage_images(read_weights(weights_file(run_name(name, ratio), folder))[0], data.frames), DETECTION_THRESHOLD


def _answers(estimates: list[Targets], truth: Targets) -> dict:
    """Detections of each frame and stage, rows [x, y, intensity, partner, (sigma x, sigma y, score)], and the root mean square error of those with a partner.

    A partner is the place of the target that the detection finds, -1 if it finds none.
    """
    points, rmse = [[] for _ in truth.count], [[] for _ in truth.count]
    for estimate in estimates:
        frame, detection, target = match_pairs(estimate, truth, cap=NEAR)
        partner = np.full(estimate.xy.shape[:2], -1)
        partner[frame, detection] = target
        columns = [estimate.xy, estimate.intensity[..., None], partner[..., None]]
        if estimate.sigma is not None:
            columns += [estimate.sigma, estimate.score[..., None]]
        rows = np.round(np.concatenate(columns, axis=-1), 4)
        for k, count in enumerate(estimate.count):
            points[k].append(rows[k, :count].tolist())
            error = localisation(estimate[k], truth[k], cap=NEAR).rmse
            rmse[k].append(None if np.isnan(error) else error)
    return {"points": points, "rmse": rmse}


# ---- compact numbers ---------------------------------------------------------------------------------------------------


def pack(images: np.ndarray, origin: np.ndarray, ratio: int) -> dict:
    """Images (n, stages, 11c, 11c) cut to their windows, in 8 bits: ``levels`` in base64, ``low`` and ``step`` of each image.

    >>> image = np.zeros((1, 1, 33, 33)); image[0, 0, 16, 16] = 255
    >>> packed = pack(image, np.array([[3, 3]]), 3)
    >>> packed["low"], packed["step"], len(packed["levels"])
    ([[0.0]], [[1.0]], 300)
    """
    rows, columns = (ratio * origin[:, axis, None] + np.arange(WINDOW * ratio) for axis in (0, 1))
    every = np.arange(len(images))[:, None, None, None]
    cut = images[every, np.arange(images.shape[1])[:, None, None], rows[:, None, :, None], columns[:, None, None, :]].astype(np.float64)
    low = np.floor(cut.min((2, 3)))
    step = np.maximum(np.ceil((cut.max((2, 3)) - low) / 255 * 1000), 1) / 1000
    levels = np.rint((cut - low[..., None, None]) / step[..., None, None]).astype(np.uint8)
    return {"low": low.tolist(), "step": step.tolist(), "levels": _encoded(levels)}


def unpack(entry: dict, frames: int, frame: int, stage: int) -> np.ndarray:
    """One image of :func:`pack` (5c, 5c) [grey levels], to half a step."""
    stages, side = len(entry["low"][0]), WINDOW * entry["ratio"]
    levels = np.frombuffer(base64.b64decode(entry["levels"]), dtype=np.uint8).reshape(frames, stages, side, side)
    return entry["low"][frame][stage] + entry["step"][frame][stage] * levels[frame, stage]


def _encoded(levels: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(levels, dtype=np.uint8).tobytes()).decode()


def _palette() -> list[str]:
    """The colours of :func:`csist.plotting.show_signed`, from the most negative to the most positive."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colour) for colour in colormaps["PuOr_r"](np.linspace(0, 1, COLOURS))]


# ---- the widget --------------------------------------------------------------------------------------------------------


class ModelViewer(anywidget.AnyWidget):
    """Choose a test frame and a method, and see what it answers, stage by stage where it has stages (book page "Gallery: what the networks see").

    Parameters
    ----------
    data : dict, optional
        Of :func:`csist.widgets.model_viewer.viewer_data`, which is called without it: some seconds, and the first call of the off-grid solver a minute.
    frame : int
        Number of the frame in the test split; by default the first shown with three targets.
    method : str
        A key of the data's methods, by default DISTA-Net.
    stage : int
        Stages that the estimate shown has passed; -1 for the answer.

    >>> viewer = ModelViewer(viewer_data(["dista-net"], {8: "first"}, ratios=[3]), stage=2)
    >>> viewer, viewer.image.shape, viewer.truth.count.tolist()
    (ModelViewer(1 frames, 2 methods; frame 8, dista-net, stage 2 of 6), (15, 15), [3])
    """

    _esm = HERE / "model_viewer.js"
    _css = HERE / "model_viewer.css"
    data = traitlets.Dict(read_only=True).tag(sync=True)
    frame = traitlets.Int(0).tag(sync=True)
    method = traitlets.Unicode(PERFECT).tag(sync=True)
    stage = traitlets.Int(-1, min=-1).tag(sync=True)

    def __init__(self, data: dict | None = None, **settings):
        data = viewer_data() if data is None else data
        if not isinstance(data, dict) or not {"frames", "methods", "pixels", "palette"} <= set(data):
            raise traitlets.TraitError("ModelViewer: data must be what viewer_data returns; leave it out to compute it")
        three = [entry["number"] for entry in data["frames"] if len(entry["targets"]) == 3]
        names = [entry["name"] for entry in data["methods"]]
        defaults = {"frame": [*three, data["frames"][0]["number"]][0], "method": "dista-net" if "dista-net" in names else names[-1]}
        self.set_trait("data", data)  # first: the other settings are checked against it
        super().__init__(**(defaults | settings))

    @traitlets.validate("frame")
    def _check_frame(self, proposal):
        numbers = [entry["number"] for entry in self.data["frames"]]
        if proposal["value"] not in numbers:
            raise traitlets.TraitError(f"ModelViewer: frame must be one of {numbers}; got {proposal['value']}. viewer_data(frames=...) takes others")
        return proposal["value"]

    @traitlets.validate("method")
    def _check_method(self, proposal):
        names = [entry["name"] for entry in self.data["methods"]]
        if proposal["value"] not in names:
            raise traitlets.TraitError(f"ModelViewer: {unknown_name(proposal['value'], names)}")
        return proposal["value"]

    @property
    def entry(self) -> dict:
        """The chosen method's part of the data."""
        return next(entry for entry in self.data["methods"] if entry["name"] == self.method)

    @property
    def stages(self) -> int:
        """Number of the method's stages; 0 for one that answers in one go."""
        return len(self.entry["points"][0]) - 1

    @property
    def shown_stage(self) -> int:
        """Stages that the estimate shown has passed, 0 .. ``stages``."""
        return min(self.stage, self.stages) if self.stage >= 0 else self.stages

    @property
    def index(self) -> int:
        """Place of the frame among those shown."""
        return next(k for k, entry in enumerate(self.data["frames"]) if entry["number"] == self.frame)

    @property
    def truth(self) -> Targets:
        """True targets of the frame."""
        rows = np.array(self.data["frames"][self.index]["targets"])
        return Targets(rows[None, :, :2], rows[None, :, 2], [len(rows)])

    @property
    def estimate(self) -> Targets:
        """Detections shown, with ``sigma`` and ``score`` where the method claims them."""
        rows = self.entry["points"][self.index][self.shown_stage]
        rows = np.array(rows, dtype=float).reshape(len(rows), -1 if rows else 4)
        more = ([rows[:, 6]], [rows[:, 4:6]]) if rows.shape[1] == 7 else ()
        return Targets.from_lists([rows[:, :2]], [rows[:, 2]], *more)

    @property
    def pixels(self) -> np.ndarray:
        """The frame (11, 11), uint8."""
        size = self.data["size"]
        return np.frombuffer(base64.b64decode(self.data["pixels"]), dtype=np.uint8).reshape(-1, size, size)[self.index]

    @property
    def image(self) -> np.ndarray | None:
        """The sub-pixel image of the window shown (5c, 5c) [grey levels], exact to half a step; None for a method without a grid."""
        return None if self.entry["ratio"] is None else unpack(self.entry, len(self.data["frames"]), self.index, self.shown_stage)

    def __repr__(self) -> str:  # without a memory address: notebook outputs stay the same from run to run
        stage = f", stage {self.shown_stage} of {self.stages}" if self.stages else ""
        return f"ModelViewer({len(self.data['frames'])} frames, {len(self.data['methods'])} methods; frame {self.frame}, {self.method}{stage})"

    def state(self) -> dict:
        """What the page needs to know."""
        return {name: getattr(self, name) for name in ("data", "frame", "method", "stage")}

    def static_html(self) -> str:
        """The viewer for a page without a kernel."""
        esm, css = ((HERE / f"model_viewer.{kind}").read_text(encoding="utf8") for kind in ("js", "css"))
        alt = html.escape(f"Test frame {self.frame} with {self.truth.count[0]} targets, and the answer of {self.entry['label']}", quote=True)
        return static_html(esm, css, self.state(), f'<img alt="{alt}" src="data:image/png;base64,{base64.b64encode(self.png()).decode()}">')

    def png(self) -> bytes:
        """Frame and answer as a picture, for print and for readers without JavaScript."""
        from matplotlib.figure import Figure

        from csist.plotting import show_frame, show_signed, show_targets, style

        with style():
            figure = Figure(figsize=(6.4, 3.3), dpi=80)
            left, right = figure.subplots(1, 2)
            title = self.entry["label"] + (f", stage {self.shown_stage} of {self.stages}" if self.stages else "")
            show_frame(self.pixels, left, targets=self.truth, zoom=2, full_scale=self.data["full_scale"], title=f"frame {self.frame}")
            if self.image is None:
                show_frame(self.pixels, right, targets=self.truth, zoom=2, title=title)
            else:
                grid = SubpixelGrid(self.pixels.shape, self.entry["ratio"])
                whole = np.zeros(grid.shape)
                row, column = self.entry["ratio"] * np.array(self.data["frames"][self.index]["origin"])
                whole[row : row + len(self.image), column : column + len(self.image)] = self.image
                show_signed(whole, right, grid=grid, targets=self.truth, zoom=2, title=title)
            if self.estimate.count[0]:
                show_targets(self.estimate, right, kind="estimate", method=self.entry["method"])
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", metadata={"Software": None})
        return buffer.getvalue()

    def _repr_mimebundle_(self, **kwargs):
        bundle = super()._repr_mimebundle_(**kwargs)
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle or {}, {})
        picture = base64.b64encode(self.png()).decode()
        return {**data, "text/plain": repr(self), "text/html": self.static_html(), "image/png": picture}, metadata
