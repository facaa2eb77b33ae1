"""What the page "How this book was built" says: versions, fingerprints of data and weights, seconds per page, size. Computed at each build, never typed in.

``{built}`` is a directive with one argument, the name of a table. The size of the book is known only when it is finished, so it is filled in then.
"""
from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections import Counter
from pathlib import Path

from packaging.requirements import Requirement
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

logger = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parents[2]
LARGEST = 40e6  # bytes: the book stays small enough to be sent and kept
SIZE_MARK = '<span class="book-size"></span>'


def table(head, rows) -> str:
    """A Markdown table."""
    rows = [head, [":--"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def direct_requirements() -> list[str]:
    """The libraries that pyproject.toml names, the package's own first, without the tools of tests and JupyterLab."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))["project"]
    extras = project["optional-dependencies"]
    texts = project["dependencies"] + [text for name in ("io", "offgrid", "train", "reproduce", "notebooks", "book") for text in extras[name]]
    return list(dict.fromkeys(requirement.name for requirement in map(Requirement, texts) if requirement.name != "csist"))


def locked_versions() -> dict[str, str]:
    """The versions of requirements.lock for the Python that builds the book."""
    lines = (line.split("#")[0].strip() for line in (ROOT / "requirements.lock").read_text(encoding="utf8").splitlines())
    pins = [Requirement(line) for line in lines if line]
    return {pin.name: str(pin.specifier).removeprefix("==") for pin in pins if pin.marker is None or pin.marker.evaluate()}


def machine_table(_) -> str:
    from csist.evaluation import provenance

    made = provenance()
    commit = made["commit"]
    rows = [
        ["csist", made["versions"]["csist"]],
        ["commit", f"`{commit}`" if commit else "built outside a git repository"],
        ["Python", made["python"]],
        ["processor", made["device"]],
    ]
    return table(["what", "this build"], rows)


def libraries_table(_) -> str:
    locked = locked_versions()
    rows = []
    for name in direct_requirements():
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed = "not installed"
        rows.append([name, installed, locked.get(name, "not in the lock")])
    return table(["library", "this build", "requirements.lock"], rows)


def data_table(_) -> str:
    """How many result files quote which fingerprint of the training and the test split."""
    quoted = Counter()
    for path in sorted((ROOT / "reproduce" / "results").glob("*.json")):
        result = json.loads(path.read_text(encoding="utf8"))
        test = result.get("test") or {}
        if "train_sha256" in result:
            quoted["training split, 80,000 frames", result["train_sha256"]] += 1
        if test.get("frames") == 10_000:
            quoted["test split, 10,000 frames", test["frames_sha256"]] += 1
    return table(["data", "SHA-256 begins", "result files that quote it"], [[what, f"`{sha[:16]}`", n] for (what, sha), n in sorted(quoted.items())])


def weights_table(_) -> str:
    """The stored weights, and whether the result file of the same name was made with them."""
    rows = []
    for path in sorted((ROOT / "reproduce" / "weights").glob("*.safetensors")):
        sha = hashlib.sha256(path.read_bytes()).hexdigest()
        result = ROOT / "reproduce" / "results" / f"{path.stem}.json"
        stored = json.loads(result.read_text(encoding="utf8")).get("weights_sha256") if result.exists() else None
        verdict = "no result of this name" if stored is None else "the same" if stored == sha else "**other weights**"
        rows.append([path.stem, f"{path.stat().st_size / 1e6:.2f}", f"`{sha[:16]}`", verdict])
    return table(["weights", "MB", "SHA-256 begins", "in the result file"], rows)


def results_table(directive) -> str:
    """Seconds that papermill took for each results page, from what it wrote into the notebook."""
    env, rows = directive.env, []
    for docname in sorted(name for name in env.found_docs if name.startswith("results/")):
        run = json.loads(Path(env.doc2path(docname)).read_text(encoding="utf8"))["metadata"].get("papermill", {})
        seconds = f"{run['duration']:.1f}" if run.get("duration") is not None else "not recorded"
        rows.append([f"{{doc}}`/{docname}`", run.get("parameters", {}).get("scale", "not recorded"), seconds])
    return table(["page", "scale", "seconds"], rows)


TABLES = {"machine": machine_table, "libraries": libraries_table, "data": data_table, "weights": weights_table, "results": results_table}


class Built(SphinxDirective):
    required_arguments = 1

    def run(self):
        name = self.arguments[0]
        if name not in TABLES:
            raise self.error(f"built: there is no table {name!r}; there are {', '.join(TABLES)}")
        self.env.note_reread()  # its numbers come from outside the page
        return self.parse_text_to_nodes(TABLES[name](self))


def write_size(app, exception):
    """Fill in the finished book's size, and refuse one that has grown too large."""
    if exception or app.builder.name != "html":
        return
    files = [path.stat().st_size for path in Path(app.outdir).rglob("*") if path.is_file()]
    if sum(files) > LARGEST:
        logger.warning("the book takes %.1f MB; it should stay below %.0f MB", sum(files) / 1e6, LARGEST / 1e6)
    page = Path(app.outdir) / "chapters" / "built.html"
    if page.exists():
        text = page.read_text(encoding="utf8")
        size = f"{sum(files) / 1e6:.1f} MB in {len(files)} files"
        page.write_text(text.replace(SIZE_MARK, SIZE_MARK.replace("><", f">{size}<")), encoding="utf8")


def setup(app):
    app.add_directive("built", Built)
    app.connect("build-finished", write_size, priority=800)  # after everything has been copied
    return {"parallel_read_safe": True, "parallel_write_safe": True}
