"""The folder layout of CSIST-100K and its reference toolkit GrokCSO: one PNG and one XML file per frame.

::

    folder/cso_img/image_<id>.png           8-bit grey, 11 x 11
    folder/Annotations/CSO<id>.xml          the frame's targets

Its ``xc`` is the ROW and its ``yc`` the COLUMN, as everywhere in this package; no axis is swapped here. The files come from a stranger's download, so each is
checked for size and kind before it is decoded, and every refusal names the file and the remedy. Needs Pillow: ``pip install "csist[io]"``.
"""
from __future__ import annotations

import io
import math
import os
import re
import struct
import warnings
import xml.etree.ElementTree as ET
import zlib
from decimal import Context, Decimal, InvalidOperation
from pathlib import Path
from xml.parsers import expat

import numpy as np

from csist.datasets import Frames
from csist.imaging import check_shape
from csist.scenes import Targets

FRAME_FOLDER, ANNOTATION_FOLDER = "cso_img", "Annotations"
FRAME_NAME = re.compile(r"image_([0-9]+)\.png", re.IGNORECASE)
ANNOTATION_NAME = re.compile(r"CSO_?([0-9]+)\.xml", re.IGNORECASE)  # the toolkit writes CSO7.xml, its README shows CSO_00007.xml
MAX_XML_BYTES = 1_000_000  # a real annotation has about 1 kB
MAX_NUMBER_LENGTH = 80  # characters; longer than any exact 60-digit number that write_grokcso prints
PNG_COLOUR_TYPES = {0: "grey", 2: "RGB colour", 3: "palette", 4: "grey with alpha", 6: "RGB colour with alpha"}
# Pixels are counted from 1 by adding exactly 1 to the decimal number; float64 addition would lose the last bits of small coordinates.
EXACT = Context(prec=60)


def read_grokcso(folder, *, shape=(11, 11), one_based: bool = False) -> Frames:
    """Read frames and targets from a folder in the layout of CSIST-100K (book chapter "CSIST-100K rebuilt").

    Frames are sorted by the number in their name (image_2 before image_10), whatever order the directory lists them in. Hidden files and files with other
    names are ignored. A frame may have no target at all.

    Parameters
    ----------
    folder : path
        Folder of one split; holds ``cso_img`` and ``Annotations``.
    shape : (int, int)
        Rows and columns that every frame must have [px].
    one_based : bool
        The annotations count pixels from 1 (some of the original files do); 1 is subtracted from both coordinates.

    Returns
    -------
    Frames
        Named tuple ``frames`` (n, rows, columns) uint8 and ``targets`` (x = row, y = column, counted from 0).

    Raises
    ------
    FileNotFoundError
        If the folder, one of its two parts, a frame or an annotation is missing.
    ValueError
        If a file is damaged, of the wrong kind or size, or says something impossible; the message names it, what is allowed, and the remedy.
    ImportError
        Without Pillow.

    Warns
    -----
    UserWarning
        If the light of most frames lies one pixel from where the annotations put it, or at the place with rows and columns swapped.

    Notes
    -----
    Layout after the GrokCSO toolkit (github.com/GrokCV/GrokCSO). Measured: 10,000 frames in about 3 s on one core.

    >>> import csist, tempfile
    >>> data = csist.csist100k("test", size=3)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_grokcso(folder, *data)
    ...     again = read_grokcso(folder)
    >>> bool((again.frames == data.frames).all()), again.targets.count.tolist() == data.targets.count.tolist()
    (True, True)
    """
    _pillow()
    shape = check_shape(shape)
    pairs = _paired_files(Path(folder))
    frames = np.empty((len(pairs), *shape), dtype=np.uint8)
    positions, intensities = [], []
    for row, (frame_path, annotation_path) in enumerate(pairs):
        frames[row] = _read_frame(frame_path, shape)
        xy, intensity = _read_annotation(annotation_path, shape, one_based)
        positions.append(xy)
        intensities.append(intensity)
    targets = Targets.from_lists(positions, intensities)
    _warn_if_misplaced(frames, targets, one_based)
    return Frames(frames, targets)


def write_grokcso(folder, frames, targets: Targets, *, sigma: float = 0.5, one_based: bool = False, overwrite: bool = False) -> None:
    """Write frames and targets in the layout of CSIST-100K, numbered from 0, so that :func:`read_grokcso` gives the same numbers back to the last bit.

    Every file is written under a temporary name and then renamed, so no reader meets half a file.

    Parameters
    ----------
    folder : path
        Made if it does not exist.
    frames : array (n, rows, columns), uint8
        At least one frame [grey levels].
    targets : Targets
        What is in each frame; positions [px] on the frame, intensities >= 0 [grey levels of total flux].
    sigma : float
        Standard deviation of the PSF [px], written beside the targets for the reader's information.
    one_based : bool
        Count pixels from 1, as some of the original files do. Coordinates keep 60 digits.
    overwrite : bool
        Replace frames that are already there. A frame that this call would not replace is never deleted: it raises the same error.

    Raises
    ------
    ValueError
        If frames, targets or sigma are out of range; nothing is written then.
    FileExistsError
        If the folder already holds frames or annotations (see ``overwrite``).
    ImportError
        Without Pillow.

    >>> import csist, os, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_grokcso(folder, *csist.csist100k("test", size=2))
    ...     sorted(os.listdir(os.path.join(folder, "cso_img")))
    ['image_0.png', 'image_1.png']
    """
    image = _pillow()
    frames = _check_writable(frames, targets, sigma)
    folder = Path(folder)
    frame_paths = [folder / FRAME_FOLDER / f"image_{number}.png" for number in range(len(frames))]
    annotation_paths = [folder / ANNOTATION_FOLDER / f"CSO{number}.xml" for number in range(len(frames))]
    _refuse_to_lose_files(folder, {*frame_paths, *annotation_paths}, overwrite)
    for part in (FRAME_FOLDER, ANNOTATION_FOLDER):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames):
        png = io.BytesIO()
        image.fromarray(frame).save(png, format="PNG")
        _write_whole(annotation_paths[number], _annotation(number, frame.shape, targets, sigma, one_based))
        _write_whole(frame_paths[number], png.getvalue())


def _pillow():
    """Pillow's ``Image`` module, imported only here because nothing else in the package needs it."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError('PNG frames need Pillow, which is not installed. Run: pip install "csist[io]"   (or: pip install pillow)') from error
    return Image


# Finding the files


def _paired_files(folder: Path) -> list[tuple[Path, Path]]:
    """(frame, annotation) paths by ascending number; an error if one lacks the other."""
    if not folder.is_dir():
        raise FileNotFoundError(f"read_grokcso: {folder} is not a folder; pass one split's folder, which holds {FRAME_FOLDER}/ and {ANNOTATION_FOLDER}/")
    frames = _numbered_files(folder, FRAME_FOLDER, FRAME_NAME, "image_<number>.png")
    annotations = _numbered_files(folder, ANNOTATION_FOLDER, ANNOTATION_NAME, "CSO<number>.xml")
    if not frames and not annotations:
        raise FileNotFoundError(f"read_grokcso: no frames in {folder / FRAME_FOLDER}; frames must be named image_<number>.png")
    for have, lack, what, where, pattern in (
        (frames, annotations, "annotation", ANNOTATION_FOLDER, "CSO{}.xml"),
        (annotations, frames, "frame", FRAME_FOLDER, "image_{}.png"),
    ):
        lonely = sorted(have.keys() - lack.keys())
        if lonely:
            raise FileNotFoundError(
                f"read_grokcso: {len(lonely):,} of {len(have):,} files have no {what}, first {have[lonely[0]]}; "
                f"add {folder / where / pattern.format(lonely[0])} or remove that file (a frame without targets needs an annotation without objects)"
            )
    return [(frames[number], annotations[number]) for number in sorted(frames)]


def _numbered_files(folder: Path, part: str, pattern: re.Pattern, expected: str) -> dict[int, Path]:
    """Files of one part of the folder by the number in their names; an error for a missing part and for two spellings of one number."""
    if not (folder / part).is_dir():
        splits = sorted(child.name for child in folder.iterdir() if (child / part).is_dir())
        layout = f"a split is a folder with {FRAME_FOLDER}/image_<number>.png and {ANNOTATION_FOLDER}/CSO<number>.xml"
        remedy = f"did you mean {folder / splits[0]}?" if splits else layout
        raise FileNotFoundError(f"read_grokcso: {folder} has no folder {part}; {remedy}")
    found: dict[int, Path] = {}
    for path in sorted((folder / part).iterdir()):
        match = pattern.fullmatch(path.name)
        if match is None or not path.is_file():
            continue
        number = int(match[1])
        if number in found:
            raise ValueError(
                f"read_grokcso: {found[number]} and {path.name} have the same number {number}; "
                f"names must be {expected} with each number once: remove or rename one"
            )
        found[number] = path
    return found


# Frames


def _read_frame(path: Path, shape: tuple[int, int], depths=(8,)) -> np.ndarray:
    """One grey frame (rows, columns) of an allowed depth; size and kind are judged by the header, before anything is decompressed."""
    rows, columns = shape
    data = _read_capped(path, 1_000_000 + 4 * rows * columns, f"a grey PNG of {rows} x {columns} px")
    depth = _check_png_header(path, data, shape, depths)
    image = _pillow()
    try:
        # Decoding alone passes over some flipped bytes; verify() compares every chunk's checksum and uses the image object up.
        image.open(io.BytesIO(data), formats=["PNG"]).verify()
        _check_rows_complete(data, shape, depth // 8)
        with image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            return np.asarray(picture, dtype=np.uint8 if depth == 8 else np.uint16).reshape(shape)
    except Exception as error:  # damage comes as OSError, SyntaxError, ValueError, struct.error or zlib.error
        raise ValueError(f"read_grokcso: {path} is damaged or cut short ({error}); copy or download it again") from error


def _check_png_header(path: Path, data: bytes, shape: tuple[int, int], depths) -> int:
    """Depth of a grey PNG; refuses another kind or size, from the first 26 bytes: signature, then IHDR with width, height, depth, colour type."""
    if len(data) < 33 or data[:8] != b"\x89PNG\r\n\x1a\n" or data[12:16] != b"IHDR":
        raise ValueError(f"read_grokcso: {path} is not a PNG file or is cut short in its header; copy or download it again")
    width, height, depth, colour = struct.unpack(">IIBB", data[16:26])
    if depth not in depths or colour != 0:
        kind = PNG_COLOUR_TYPES.get(colour, f"unknown colour type {colour}")
        deep = "scale its levels to 0 .. 255 (Pillow's convert('L') would clip them), or use an array, or csist unmix --bits"
        fix = "convert it to Pillow's mode 'L'" if depth <= 8 else deep
        raise ValueError(f"read_grokcso: {path} is a {depth}-bit {kind} PNG; frames must be {' or '.join(map(str, depths))}-bit grey: {fix}")
    if (height, width) != shape:
        raise ValueError(
            f"read_grokcso: {path} has {height} x {width} px (rows x columns), expected {shape[0]} x {shape[1]}; "
            f"if all frames have that size, pass shape=({height}, {width}), on the command line --shape {height} {width}"
        )
    return depth


def _check_rows_complete(data: bytes, shape: tuple[int, int], width: int) -> None:
    """Refuse pixel data with fewer or more rows than announced, which Pillow would fill up or drop without a word.

    A row of a grey PNG is one filter byte and its pixels, ``width`` bytes each. At most one byte more than needed is unpacked. Interlaced files (byte 28) have
    another row order and are let through.
    """
    if data[28]:
        return
    packed, at, kind = [], 8, b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IDAT":
            packed.append(data[at + 8 : at + 8 + length])
        at += 12 + length
    needed = shape[0] * (shape[1] * width + 1)
    found = len(zlib.decompressobj().decompress(b"".join(packed), needed + 1))
    if found != needed:
        raise ValueError(f"its pixel data are {'shorter' if found < needed else 'longer'} than {shape[0]} rows")


def _read_capped(path: Path, cap: int, kind: str) -> bytes:
    """A file's bytes, unless it is larger than any honest file of its kind; a huge file is refused unread."""
    size = path.stat().st_size
    if size > cap:
        raise ValueError(f"read_grokcso: {path} has {size:,} bytes, more than the {cap:,} allowed for {kind}: remove or replace it")
    with path.open("rb") as file:
        return file.read(cap)


# Annotations


def _read_annotation(path: Path, shape: tuple[int, int], one_based: bool) -> tuple[np.ndarray, np.ndarray]:
    """Positions (m, 2) [px, from 0] and intensities (m,) of one annotation file."""
    root = _parse_xml(path)
    if root.tag != "annotation":
        raise ValueError(f"read_grokcso: {path} has the root element <{root.tag:.40}>; it must be <annotation>, as in CSIST-100K")
    _check_stated_size(path, root, shape)
    objects = root.findall("object")
    if len(objects) > shape[0] * shape[1]:
        raise ValueError(f"read_grokcso: {path} lists {len(objects):,} targets; at most one per pixel, {shape[0] * shape[1]:,}, is allowed: check the file")
    values = np.array([_read_object(path, number, element, one_based) for number, element in enumerate(objects, 1)], dtype=np.float64).reshape(-1, 3)
    _check_on_frame(path, values[:, :2], shape, one_based)
    return values[:, :2], values[:, 2]


def _parse_xml(path: Path) -> ET.Element:
    """The element tree of a small XML file without a document type.

    A DOCTYPE is the door to every XML attack (entities that multiply, entities that fetch files). expat announces it before it reads what is inside,
    in any encoding, and the handler refuses it there.
    """
    data = _read_capped(path, MAX_XML_BYTES, "an annotation")
    builder = ET.TreeBuilder()
    parser = expat.ParserCreate()
    depth = 0

    def refuse(*_):
        raise expat.ExpatError("it declares a DOCTYPE or ENTITY, which no annotation needs and which can hide an attack: delete the declaration")

    def start(tag, attributes):
        nonlocal depth
        depth += 1
        if depth > 16:
            raise expat.ExpatError("it nests elements more than 16 deep where an annotation needs 4")
        builder.start(tag, attributes)

    def end(tag):
        nonlocal depth
        depth -= 1
        builder.end(tag)

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, builder.data
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, LookupError, ValueError) as error:  # the latter two: an encoding that Python or expat does not know
        raise ValueError(f"read_grokcso: {path} is not a plain, well-formed XML file ({error}); repair it or download it again") from error
    return builder.close()


def _check_stated_size(path: Path, root: ET.Element, shape: tuple[int, int]) -> None:
    """The annotation's own ``size``, where it has one, must be that of the frames."""
    for name, expected in (("height", shape[0]), ("width", shape[1])):
        if root.find(f"size/{name}") is not None and _number(path, root, f"size/{name}", "the annotation") != expected:
            stated = root.findtext(f"size/{name}").strip()
            raise ValueError(
                f"read_grokcso: {path} says that its frame has {name} {stated}, expected {expected}; "
                "repair it, or pass shape=(rows, columns) if all frames have that size"
            )


def _read_object(path: Path, number: int, element: ET.Element, one_based: bool) -> tuple[float, float, float]:
    """x, y [px, from 0] and intensity of one target."""
    name = element.findtext("name", "Target").strip()
    if name.lower() != "target":
        raise ValueError(f"read_grokcso: {path}: object {number} is a {name[:40]!r}; the only kind of object is 'Target': remove or rename it")
    place = f"object {number}"
    x, y = (float(EXACT.subtract(_number(path, element, f"coordinate/{axis}", place), Decimal(bool(one_based)))) for axis in ("xc", "yc"))
    brightness = float(_number(path, element, "coordinate/brightness", place))
    if brightness < 0:
        raise ValueError(f"read_grokcso: {path}: object {number} has the brightness {brightness}; it is a total flux in grey levels and must be >= 0")
    return x, y, brightness


def _number(path: Path, element: ET.Element, field: str, place: str) -> Decimal:
    """The finite number that stands in one field, exactly as printed."""
    found = element.findall(field)
    if len(found) != 1:
        raise ValueError(f"read_grokcso: {path}: {place} has {len(found)} fields <{field}>; it needs exactly one, holding a number")
    text = "".join(found[0].itertext()).strip()
    try:
        value = Decimal(text) if len(text) <= MAX_NUMBER_LENGTH and "_" not in text else Decimal("nan")
        if not math.isfinite(value):
            raise ValueError
        return value
    except (InvalidOperation, ValueError, OverflowError):
        raise ValueError(f"read_grokcso: {path}: {place} has {text[:40]!r} in <{field}>; it must be a finite decimal number such as 4.5") from None


def _check_on_frame(path: Path, xy: np.ndarray, shape: tuple[int, int], one_based: bool) -> None:
    """Refuse targets off the frame; say so if the count from 0 or from 1 explains them."""
    size = np.array(shape)
    if ((xy >= -0.5) & (xy <= size - 0.5)).all():
        return
    x, y = xy[((xy < -0.5) | (xy > size - 0.5)).any(1)][0]
    message = (
        f"read_grokcso: {path} puts a target at row {x:.6g}, column {y:.6g}, off the {shape[0]} x {shape[1]} frame; "
        f"allowed are -0.5 .. {shape[0] - 0.5} and -0.5 .. {shape[1] - 0.5} px, counted from 0"
    )
    other = xy + (1 if one_based else -1)
    if not ((other >= -0.5) & (other <= size - 0.5)).all():
        raise ValueError(f"{message}; repair the file, or pass shape=(rows, columns) if the frames are larger")
    raise ValueError(f"{message}; the file seems to count pixels from {int(not one_based)}: pass one_based={not one_based}")


def _warn_if_misplaced(frames: np.ndarray, targets: Targets, one_based: bool) -> None:
    """Compare where the light is with where the annotations put it, and name the slip of one pixel or of the axes if that explains most frames.

    A data set counted from 1 whose targets stay off the border passes every other check, and then no method scores anything on it.
    """
    enough = max(20, 10_000_000 // (frames.shape[1] * frames.shape[2]))  # bounds memory: the arrays below are float64
    frames, targets = frames[:enough], targets[:enough]
    light = np.clip(frames - np.median(frames, axis=(1, 2), keepdims=True), 0, None)  # without a constant background
    usable = (light.sum((1, 2)) > 0) & (np.nansum(targets.intensity, 1) > 0)
    if usable.sum() < 20:
        return  # too few frames to judge
    light, chosen = light[usable], targets[usable]
    total = light.sum((1, 2))
    measured = np.column_stack([light.sum(2) @ np.arange(light.shape[1]), light.sum(1) @ np.arange(light.shape[2])]) / total[:, None]
    weight = np.nan_to_num(chosen.intensity)[..., None]
    stated = (np.nan_to_num(chosen.xy) * weight).sum(1) / weight.sum(1)

    def miss(position):
        return np.median(np.hypot(*(position - measured).T))

    other = 1 if one_based else -1
    count = f"pixels seem to be counted from {int(not one_based)}: pass one_based={not one_based}"
    swap = "rows and columns seem to be swapped (xc must be the row): swap the last axis of targets.xy, or transpose the frames"
    explanations = {count: stated + other, swap: stated[:, ::-1], f"{count}; also {swap}": stated[:, ::-1] + other}
    best = min(explanations, key=lambda text: miss(explanations[text]))
    if miss(stated) > 0.5 and miss(explanations[best]) < 0.25:
        warnings.warn(f"read_grokcso: the light of most frames lies {miss(stated):.2f} px from the annotated targets; {best}", stacklevel=3)


# Writing


def _check_writable(frames, targets: Targets, sigma: float) -> np.ndarray:
    """Frames as an array, after every check that can be made before the first file is touched."""
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 3 or frames.size == 0:
        raise ValueError(
            f"write_grokcso: frames must be uint8 of shape (n, rows, columns) with n >= 1; got {frames.dtype} {frames.shape}. "
            "FocalPlane(bits=8).render gives such frames"
        )
    check_shape(frames.shape[1:])
    if len(targets) != len(frames):
        raise ValueError(f"write_grokcso: {len(frames)} frames but targets for {len(targets)}; pass one entry of targets for each frame")
    if not (isinstance(sigma, (int, float, np.number)) and math.isfinite(sigma) and sigma > 0):
        raise ValueError(f"write_grokcso: sigma must be a PSF width in pixels > 0; got {sigma!r}")
    xy, intensity = targets.xy[targets.mask], targets.intensity[targets.mask]
    if (xy < -0.5).any() or (xy > np.array(frames.shape[1:]) - 0.5).any():
        raise ValueError(
            f"write_grokcso: a target lies off the {frames.shape[1]} x {frames.shape[2]} frame; each coordinate must be within -0.5 .. size - 0.5 px: "
            "drop the frames it occurs in"
        )
    if (intensity < 0).any():
        raise ValueError(f"write_grokcso: an intensity is {intensity.min()}; intensities are total fluxes in grey levels and must be >= 0")
    if targets.count.max() > frames[0].size:
        raise ValueError(f"write_grokcso: a frame has {targets.count.max():,} targets; at most one per pixel, {frames[0].size:,}, is allowed")
    return frames


def _refuse_to_lose_files(folder: Path, to_write: set[Path], overwrite: bool) -> None:
    """An error if writing would replace files unasked, or leave old frames among the new ones."""
    for part, pattern in ((FRAME_FOLDER, FRAME_NAME), (ANNOTATION_FOLDER, ANNOTATION_NAME)):
        present = [path for path in (folder / part).iterdir() if pattern.fullmatch(path.name)] if (folder / part).is_dir() else []
        if present and not overwrite:
            raise FileExistsError(
                f"write_grokcso: {folder / part} already holds {len(present):,} files such as {present[0].name}; choose an empty folder or pass overwrite=True"
            )
        kept = sorted(set(present) - to_write)
        if kept:
            raise FileExistsError(
                f"write_grokcso: {kept[0]} would stay among the new files (overwrite=True replaces, it never deletes); choose an empty folder or remove it"
            )


def _annotation(number: int, shape: tuple[int, int], targets: Targets, sigma: float, one_based: bool) -> bytes:
    """One frame's annotation as XML."""
    root = ET.Element("annotation")
    ET.SubElement(root, "filename").text = f"CSO{number}"
    size = ET.SubElement(root, "size")
    for name, value in (("width", shape[1]), ("height", shape[0]), ("depth", 1)):
        ET.SubElement(size, name).text = str(value)
    ET.SubElement(root, "sigma").text = repr(float(sigma))
    m = targets.count[number]
    for (x, y), intensity in zip(targets.xy[number, :m], targets.intensity[number, :m]):
        element = ET.SubElement(root, "object")
        ET.SubElement(element, "name").text = "Target"
        coordinate = ET.SubElement(element, "coordinate")
        ET.SubElement(coordinate, "xc").text = _printed(x, one_based)
        ET.SubElement(coordinate, "yc").text = _printed(y, one_based)
        ET.SubElement(coordinate, "brightness").text = _printed(intensity, False)
    ET.indent(root)
    return ET.tostring(root, encoding="utf-8", xml_declaration=True)


def _printed(value: float, one_based: bool) -> str:
    """Shortest decimal number that reads back as the same float64, plus 1 if pixels are counted from 1."""
    text = repr(float(value))
    return str(EXACT.add(Decimal(text), Decimal(1))) if one_based else text


def _write_whole(path: Path, data: bytes) -> None:
    """Write under a hidden temporary name, then rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
