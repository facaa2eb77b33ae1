"""Networks by name: fresh ones, and ones with the committed weights."""
from __future__ import annotations

import difflib
import inspect
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path

import torch

from csist.imaging import FocalPlane, check_ratio
from csist.networks.dista_net import DistaNet
from csist.networks.fista_net import FistaNet
from csist.networks.ista_net import IstaNet, IstaNetPlus
from csist.networks.lista import Lamp, Liht, Lista, Tilista
from csist.networks.sr import SUPER_RESOLUTION
from csist.networks.unfolding import UnmixingNetwork

UNFOLDED = {
    "ista-net": IstaNet,
    "ista-net+": IstaNetPlus,
    "dista-net": DistaNet,
    "fista-net": FistaNet,
    "lista": Lista,
    "liht": Liht,
    "lamp": Lamp,
    "tilista": Tilista,
}
NETWORKS = {**UNFOLDED, **SUPER_RESOLUTION}


def unknown_name(name, known) -> ValueError:
    """The error for a misspelt method: says what exists and what was probably meant, whatever the case.

    >>> str(unknown_name("DISTA-Net", ["ista", "dista-net"]))
    "unknown method 'DISTA-Net'; known: ista, dista-net. Did you mean 'dista-net'?"
    """
    spelt, plain = str(name).lower(), {one.lower(): one for one in known}
    begun = [one for one in plain if name and one.startswith(spelt)]
    close = begun or difflib.get_close_matches(spelt, plain, n=1, cutoff=0.4)
    hint = f" Did you mean {plain[close[0]]!r}?" if close else ""
    return ValueError(f"unknown method {name!r}; known: {', '.join(known)}.{hint}")


def create_network(name: str, ratio: int = 3, **options) -> UnmixingNetwork:
    """A fresh network.

    Parameters
    ----------
    name : str
        ``"ista-net"``, ``"ista-net+"``, ``"dista-net"``, or any other key of ``NETWORKS``.
    ratio : int
        Odd sub-pixel ratio c.
    options
        Passed to the network's class, for example ``stages`` or ``variant``. ``plane`` is a FocalPlane or a mapping of its values, as in JSON.

    Raises
    ------
    ValueError
        For an unknown name (with the nearest known one), ratio or option, or a value that no focal plane has.
    TypeError
        For a plane of another type.

    >>> sum(p.numel() for p in create_network("ista-net", ratio=3, start=False).parameters())
    171090
    """
    if name not in NETWORKS:
        raise unknown_name(name, NETWORKS)
    check_ratio(ratio)
    known = [k for k in inspect.signature(NETWORKS[name]).parameters if k != "ratio"]
    for option in options:
        if option not in known:
            raise ValueError(f"{name} has no option {option!r}; it takes {', '.join(known)}")
    if isinstance(options.get("plane"), Mapping):
        options["plane"] = _plane_of(options["plane"])
    return NETWORKS[name](ratio=ratio, **options)


def _plane_of(values: Mapping) -> FocalPlane:
    """The focal plane of plain values, as JSON and YAML hold them."""
    known = [field.name for field in fields(FocalPlane)]
    unknown = [key for key in values if key not in known]
    if unknown:
        raise ValueError(f"plane has no {unknown[0]!r}; it takes {', '.join(known)}")
    return FocalPlane(**values)


def weights_folders() -> list[Path]:
    """Where weights are looked for: ``$CSIST_WEIGHTS``, the installed package, the repository; an error if the first is set but is no folder."""
    package = Path(__file__).resolve().parents[1]
    folders = [package / "weights", package.parent / "reproduce" / "weights"]
    own = os.environ.get("CSIST_WEIGHTS")
    if own and not Path(own).is_dir():
        raise FileNotFoundError(f"the environment variable CSIST_WEIGHTS names {own!r}, which is no folder; correct it or unset it")
    return [Path(own), *folders] if own else folders


def run_name(name: str, ratio: int, seed: int = 0) -> str:
    """Name of the run that trains the main row of a method, for example ``dista-net-c3-seed0``."""
    return f"{name.replace('+', '-plus')}-c{ratio}-seed{seed}"


def weights_path(run: str) -> Path | None:
    """The committed weights of a run, or None if it has not been trained."""
    for folder in weights_folders():
        if (folder / f"{run}.safetensors").is_file():
            return folder / f"{run}.safetensors"
    return None


def load_network(name: str, ratio: int = 3, run: str | None = None) -> UnmixingNetwork:
    """A trained network in evaluation mode, from the committed weights (float16 on disk, float32 here).

    Parameters
    ----------
    name, ratio
        As for :func:`create_network`.
    run : str, optional
        Another run's weights, for example ``"dista-net-c3-seed1"``; by default seed 0.

    Raises
    ------
    FileNotFoundError
        If that network has not been trained yet; the message says how to train it.
    """
    if name not in NETWORKS:
        raise unknown_name(name, NETWORKS)
    main = run_name(name, check_ratio(ratio))
    run = run or main
    path = weights_path(run)
    if path is None:
        command = f"csist train {name} --ratio {ratio}" if run == main else f"python reproduce/queue.py --only {run}"
        raise FileNotFoundError(f"no weights of {run!r} in {', '.join(map(str, weights_folders()))}; train it with: {command}")
    network, header = read_weights(path)
    if network.ratio != ratio:
        raise ValueError(f"{path} holds a network for ratio {network.ratio}; asked for {ratio}")
    if header["network"] != name:
        raise ValueError(f"{path} holds {header['network']!r}; asked for {name!r}")
    return network.eval()


def read_tensors(path) -> tuple[dict[str, torch.Tensor], dict]:
    """Tensors (as float32) and header of a weights file of this package; a clear error for anything else."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("csist", "null"))
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is no csist weights file: {error}") from error
    if header is None:
        raise ValueError(f"{path} is no csist weights file: its header lacks the 'csist' entry")
    return tensors, header


def read_weights(path) -> tuple[UnmixingNetwork, dict]:
    """The network stored in a safetensors file, with its own imaging model, and the run that made it (all from the file's own header)."""
    tensors, header = read_tensors(path)
    if header.get("kind"):
        raise ValueError(f"{path} holds a {header['kind']}, not an unmixing network")
    try:
        network = network_of(header)
        network.load_state_dict(tensors)
    except (KeyError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"{path} does not fit its own header ({type(error).__name__}: {error}); the header needs 'network', 'ratio' and the 'options' that the network was "
            "made with"
        ) from error
    return network, header


def network_of(header: dict) -> UnmixingNetwork:
    """A network of the kind that a weights file's header tells of, without its weights.

    >>> network_of({"network": "ista-net", "ratio": 3, "plane": {"shape": [11, 11], "sigma": 0.7}}).plane.sigma
    0.7
    """
    options = dict(header.get("options", {}))
    if "plane" in header:
        options["plane"] = header["plane"]
    if "start" in inspect.signature(NETWORKS.get(header["network"], UnmixingNetwork)).parameters:
        options["start"] = False  # the file brings the linear start
    return create_network(header["network"], ratio=header["ratio"], **options)


def write_weights(path, network: UnmixingNetwork, header: dict) -> None:
    """Store parameters as float16 and buffers as float32, with a JSON header; written under a temporary name, then renamed.

    The header tells how to make the network again: ``network``, ``ratio``, ``options``; its imaging model is added where it is not the default one.
    """
    from safetensors.torch import save_file

    if getattr(network, "plane", FocalPlane()) != FocalPlane():
        header = {**header, "plane": asdict(network.plane)}
    parameters = {name for name, _ in network.named_parameters()}
    tensors = {k: (v.half() if k in parameters else v.float()).contiguous().cpu() for k, v in network.state_dict().items()}
    if not all(torch.isfinite(v).all() for v in tensors.values()):
        raise ValueError(f"refusing to write {path}: a weight is not finite in float16")
    temporary = f"{path}.part"
    save_file(tensors, temporary, metadata={"csist": json.dumps(header)})
    os.replace(temporary, path)
