"""Write the headline table into README.md, between its two markers, from the result files.

    python reproduce/readme_table.py            # rewrite the table
    python reproduce/readme_table.py --check    # only say whether it is current; exit status 1 if not
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Python puts a script's folder first on its path, where queue.py would hide the standard library's own module "queue".
sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]

BEGIN, END = "<!-- headline table -->", "<!-- /headline table -->"


def headline() -> str:
    """The table with one line above it that says what it is, and a paragraph below it on how high a score can be, as Markdown."""
    from csist import csist100k, reporting

    table = reporting.readme_table(reporting.table1_rows())
    ceilings = reporting.describe_ceilings(reporting.grid_ceilings(csist100k("test").targets))
    return f"{table.caption}\n\n{table.markdown()}\n\n{ceilings}\n\n{off_the_grid()}"


BEYOND = {  # results of methods without a grid: what the sentence calls them
    "off-grid-standard": "the training-free off-grid solver",
    "off-grid-fast": "its fast tier",
    "continuous-seed0": "a small network trained to answer with positions instead of an image",
}


def off_the_grid() -> str:
    """One sentence on what the methods without a grid score on the same frames."""
    from csist.reporting import load_result

    results = {words: result["test"] for name, words in BEYOND.items() if (result := load_result(name))}
    told = "{} scores **{:.2f}**, with {:.2f} % of the counts right"
    scores = [told.format(words, 100 * test["cso_map"], 100 * test["count_accuracy"]) for words, test in results.items()]
    limit = load_result("attainable")
    value = f"{100 * limit['cso_map']:.2f} ± {100 * limit['uncertainty']:.2f}"
    posterior = f"(exact posterior of {limit['sampled']} frames, `reproduce/attainable.py`)"
    best = f"With one detection for each target that it estimates, no method can be expected to score more than about {value} on them {posterior}."
    return f"Off the grid, on the same frames: {'; '.join(scores)}. {best}"


def replace_table(text: str, table: str) -> str:
    """``text`` with whatever stands between the markers replaced by ``table``.

    >>> replace_table("a <!-- headline table -->old<!-- /headline table --> b", "new").split()
    ['a', '<!--', 'headline', 'table', '-->', 'new', '<!--', '/headline', 'table', '-->', 'b']
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"README.md needs the lines {BEGIN} and {END} once each and in this order")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{rest.split(END)[1]}"


def main(arguments=None) -> int:
    from csist.reporting import write_text

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit status 1 if the table is out of date")
    parser.add_argument("--readme", type=Path, default=HERE.parent / "README.md")
    options = parser.parse_args(arguments)
    text = options.readme.read_text(encoding="utf-8")
    wanted = replace_table(text, headline())
    if text == wanted:
        print(f"{options.readme.name}: the headline table is current")
        return 0
    if options.check:
        print(f"{options.readme.name}: the headline table is out of date; run: python reproduce/readme_table.py", file=sys.stderr)
        return 1
    write_text(options.readme, wanted)
    print(f"{options.readme.name}: wrote the headline table")
    return 0


if __name__ == "__main__":
    sys.exit(main())
