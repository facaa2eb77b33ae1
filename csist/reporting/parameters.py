"""The parameters of a notebook, checked before anything is computed."""
from __future__ import annotations

import difflib
import functools
import operator
import os
from pathlib import Path
from types import SimpleNamespace

import torch

from csist.datasets import SPLITS
from csist.imaging import check_ratio
from csist.networks.registry import unknown_name
from csist.reporting.selection import known_methods, shown_methods
from csist.reporting.sources import reproduce_folder

SCALES = {"smoke": 64, "laptop": 2_000, "paper": SPLITS["test"]}  # test frames that a scale evaluates while the page is made
MANY_ROWS = SCALES | {"laptop": 500}  # for pages with so many or so large networks that 2,000 frames for each would take long
_PLAIN = (str, int, float, bool, list, dict, tuple, type(None))
_OF_IPYTHON = {"In", "Out"}
_CHECKED = "_csist_parameters_checked"


def check_parameters(namespace: dict, known=("scale", "methods", "ratio", "n_test", "seed", "device", "output_dir"), scales=None) -> SimpleNamespace:
    """Check the parameters of a notebook, which papermill sets without looking: a misspelt name only makes it warn.

    Parameters
    ----------
    namespace : dict
        The notebook's ``globals()``. Before the first check every plain value (text, number, list ...) in it must be a known parameter; later only names
        that look like a parameter are refused, so that a cell can be run again beside variables of your own.
    known : sequence of str
        Names of the page's parameters.
    scales : dict, optional
        Test frames that each scale unmixes while the page is made; by default SCALES.

    Returns
    -------
    namespace
        The parameters ready for use: ``n_test`` and ``device`` resolved, ``output_dir`` a path that exists (relative ones are relative to the repository).

    Raises
    ------
    ValueError
        For an unknown, missing or unusable parameter; the message names it, what is allowed, and what was probably meant.

    >>> check_parameters({"scael": "smoke", "scale": "laptop"}, known=["scale"])
    Traceback (most recent call last):
        ...
    ValueError: unknown parameter 'scael'; known: scale. Did you mean 'scale'?
    """
    known = list(known)
    for name in _unknown_parameters(namespace, known):
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown parameter {name!r}; known: {', '.join(known)}.{hint}")
    missing = [name for name in known if name not in namespace]
    if missing:
        raise ValueError(f"parameter {missing[0]!r} is not set; the notebook's parameters are {', '.join(known)}")
    values = SimpleNamespace(**{name: namespace[name] for name in known})
    checks = _CHECKS | {"n_test": functools.partial(_check_n_test, scales=scales or SCALES)}
    for name in known:
        setattr(values, name, checks.get(name, lambda value, values: value)(getattr(values, name), values))
    namespace[_CHECKED] = True
    return values


def _unknown_parameters(namespace: dict, known: list[str]) -> list[str]:
    plain = [name for name, value in namespace.items() if type(value) in _PLAIN and not name.startswith("_") and name not in _OF_IPYTHON]
    unknown = [name for name in plain if name not in known]
    if namespace.get(_CHECKED):
        return [name for name in unknown if difflib.get_close_matches(name, known, n=1, cutoff=0.8)]
    return unknown


def _one_of(name: str, choices):
    def check(value, values):
        if not isinstance(value, str) or value not in choices:
            close = difflib.get_close_matches(str(value), choices, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}.{hint}")
        return value

    return check


def _check_methods(value, values):
    if value != "all" and (not isinstance(value, (list, tuple)) or not value):
        raise ValueError(f"methods must be 'all' or a list of names; got {value!r}. On papermill's command line: -y 'methods: [ista, dista-net]'")
    ratios = _check_ratios(values.ratios, values) if hasattr(values, "ratios") else [_check_ratio(getattr(values, "ratio", 3), values)]
    known = list(dict.fromkeys(name for ratio in ratios for name in known_methods(ratio)))
    if value == "all":
        return list(dict.fromkeys(name for ratio in ratios for name in shown_methods(ratio)))
    for method in value:
        if method not in known:
            raise unknown_name(method, known)
    return list(dict.fromkeys(value))


def _check_ratio(value, values):
    return check_ratio(value)


def _check_ratios(value, values):
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"ratios must be a list of sub-pixel ratios; got {value!r}. On papermill's command line: -y 'ratios: [5, 7]'")
    return list(dict.fromkeys(check_ratio(ratio) for ratio in value))


def _whole_number(name: str, smallest: int, value) -> int:
    try:
        if isinstance(value, bool) or operator.index(value) < smallest:
            raise TypeError
    except TypeError:
        raise ValueError(f"{name} must be a whole number >= {smallest}; got {value!r}") from None
    return operator.index(value)


def _check_n_test(value, values, scales):
    if value is None:
        return scales[_one_of("scale", tuple(scales))(getattr(values, "scale", "laptop"), values)]
    try:
        return _whole_number("n_test", 1, value)
    except ValueError as error:
        raise ValueError(f"{error}, or None for the scale's own ({', '.join(f'{scale} {n:,}' for scale, n in scales.items())})") from None


def _check_device(value, values):
    value = _one_of("device", ("auto", "cpu", "cuda"))(value, values)
    if value == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is 'cuda', but PyTorch sees no GPU here; use 'auto' or 'cpu'")
    return ("cuda" if torch.cuda.is_available() else "cpu") if value == "auto" else value


def _check_output_dir(value, values):
    if not isinstance(value, (str, os.PathLike)) or not str(value):
        raise ValueError(f"output_dir must be the name of a folder; got {value!r}")
    path = Path(value).expanduser()
    path = path if path.is_absolute() else reproduce_folder().parent / path
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"output_dir {str(path)!r} cannot be created ({error.strerror or error}); choose a folder that can be written") from None
    return path


_CHECKS = {
    "scale": _one_of("scale", tuple(SCALES)),
    "methods": _check_methods,
    "ratio": _check_ratio,
    "ratios": _check_ratios,
    "seed": lambda value, values: _whole_number("seed", 0, value),
    "device": _check_device,
    "output_dir": _check_output_dir,
}
