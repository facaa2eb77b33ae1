"""Interactive figures for notebooks and for the static book (extra: ``pip install "csist[book]"``)."""
from csist.widgets.ista_explorer import IstaExplorer
from csist.widgets.metric_explorer import MetricExplorer
from csist.widgets.model_viewer import ModelViewer, viewer_data
from csist.widgets.unmixing_explorer import UnmixingExplorer
from csist.widgets.widgets import PsfExplorer, static_html

__all__ = ["IstaExplorer", "MetricExplorer", "ModelViewer", "PsfExplorer", "UnmixingExplorer", "static_html", "viewer_data"]
