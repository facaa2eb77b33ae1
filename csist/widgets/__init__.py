"""Interactive figures for notebooks and for the static book (extra: ``pip install "csist[book]"``)."""
from csist.widgets.widgets import PsfExplorer, static_html

__all__ = ["PsfExplorer", "static_html"]
