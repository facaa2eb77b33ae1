"""The layout of CSIST-100K: lossless both ways, in natural order, and one clear error for each thing that a strange folder can do wrong."""
from __future__ import annotations

import inspect
import io
import os
import re
import struct
import sys
import time
import warnings
import xml.etree.ElementTree as ET
import zlib

import numpy as np
import pytest
from PIL import Image

from csist import grokcso
from csist.datasets import Frames, csist100k
from csist.grokcso import read_grokcso, write_grokcso
from csist.imaging import FocalPlane
from csist.scenes import Targets, random_targets


@pytest.fixture
def data():
    return csist100k("test", 12, cache=False)


@pytest.fixture
def folder(tmp_path, data):
    """A sound folder of 12 frames for each test to spoil."""
    write_grokcso(tmp_path / "set", *data)
    return tmp_path / "set"


def frame_path(folder, number=3):
    return folder / "cso_img" / f"image_{number}.png"


def annotation_path(folder, number=3):
    return folder / "Annotations" / f"CSO{number}.xml"


def refused(folder, *words, error=ValueError, **arguments):
    """Read, expect this one error, and each of these words in it."""
    with pytest.raises(error) as caught:
        read_grokcso(folder, **arguments)
    assert type(caught.value) is error
    message = str(caught.value)
    assert message.startswith("read_grokcso: ")
    for word in words:
        assert str(word) in message, f"{word!r} is missing in: {message}"
    return message


def same_targets(a, b):
    a_rows, b_rows = a.lists(), b.lists()
    return len(a_rows) == len(b_rows) and all(np.array_equal(x, y) for x, y in zip(a_rows, b_rows))


def small_xml(objects="", *, size="", root="annotation"):
    return f"<{root}><filename>CSO3</filename>{size}<sigma>0.5</sigma>{objects}</{root}>".encode()


def target_xml(x="5.0", y="4.0", brightness="240.0", name="<name>Target</name>"):
    return f"<object>{name}<coordinate><xc>{x}</xc><yc>{y}</yc><brightness>{brightness}</brightness></coordinate></object>"


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width=11, height=11, depth=8, colour=0, raw=None):
    raw = b"".join(b"\0" + bytes(width) for _ in range(height)) if raw is None else raw
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


# Round trip


def test_signatures():
    assert str(inspect.signature(read_grokcso)).startswith("(folder, *, shape=(11, 11), one_based: 'bool' = False)")
    assert list(inspect.signature(write_grokcso).parameters)[:3] == ["folder", "frames", "targets"]


@pytest.mark.parametrize("one_based", [False, True])
def test_round_trip_is_lossless(tmp_path, one_based):
    data = csist100k("test", 100, cache=False)
    write_grokcso(tmp_path, *data, one_based=one_based)
    again = read_grokcso(tmp_path, one_based=one_based)
    assert isinstance(again, Frames) and again.frames.dtype == np.uint8
    np.testing.assert_array_equal(again.frames, data.frames)
    assert same_targets(again.targets, data.targets)
    np.testing.assert_array_equal(again.targets.count, data.targets.count)


@pytest.mark.parametrize("one_based", [False, True])
def test_awkward_float64_values_survive(tmp_path, one_based):
    values = [-0.5, 10.5, np.nextafter(-0.5, 1), np.nextafter(10.5, 0), 1e-17, -1e-17, 0.1 + 0.2, 1 / 3, np.nextafter(0.5, 1), 1e-40]
    scene = Targets([[[v, w] for v, w in zip(values, values[::-1])]], [[0.0, 1e-300, 1e300, 5e-324, 0.1, 250.0, 220.0, 1 / 3, 2**53, np.pi]], [10])
    write_grokcso(tmp_path, np.zeros((1, 11, 11), np.uint8), scene, one_based=one_based)
    assert same_targets(read_grokcso(tmp_path, one_based=one_based).targets, scene)


def test_x_is_the_row_and_nothing_is_transposed(tmp_path):
    scene = Targets([[[2.0, 7.0]]], [[240.0]], [1])
    write_grokcso(tmp_path, FocalPlane().render(scene), scene)
    root = ET.parse(tmp_path / "Annotations" / "CSO0.xml").getroot()
    assert root.findtext("object/coordinate/xc") == "2.0" and root.findtext("object/coordinate/yc") == "7.0"
    assert np.asarray(Image.open(tmp_path / "cso_img" / "image_0.png"))[2, 7] == read_grokcso(tmp_path).frames[0, 2, 7] == 112


def test_written_files_have_the_documented_layout(folder, data):
    assert sorted(os.listdir(folder)) == ["Annotations", "cso_img"]
    assert sorted(os.listdir(folder / "cso_img")) == sorted(f"image_{i}.png" for i in range(12))
    assert sorted(os.listdir(folder / "Annotations")) == sorted(f"CSO{i}.xml" for i in range(12))
    root = ET.parse(annotation_path(folder)).getroot()
    assert root.tag == "annotation" and [child.tag for child in root][:3] == ["filename", "size", "sigma"]
    assert [(child.tag, child.text) for child in root.find("size")] == [("width", "11"), ("height", "11"), ("depth", "1")]
    assert root.findtext("sigma") == "0.5"
    objects = root.findall("object")
    assert len(objects) == data.targets.count[3]
    assert [child.tag for child in objects[0]] == ["name", "coordinate"] and objects[0].findtext("name") == "Target"
    assert [child.tag for child in objects[0].find("coordinate")] == ["xc", "yc", "brightness"]
    assert objects[0].findtext("coordinate/xc") == repr(float(data.targets.xy[3, 0, 0]))
    assert objects[0].findtext("coordinate/brightness") == repr(float(data.targets.intensity[3, 0]))
    with Image.open(frame_path(folder)) as picture:
        assert (picture.mode, picture.size, picture.format) == ("L", (11, 11), "PNG")


def test_one_based_files_print_positions_plus_one(tmp_path):
    write_grokcso(tmp_path, np.zeros((1, 11, 11), np.uint8), Targets([[[4.5, 0.1]]], [[240.0]], [1]), one_based=True, sigma=0.75)
    root = ET.parse(tmp_path / "Annotations" / "CSO0.xml").getroot()
    assert (root.findtext("object/coordinate/xc"), root.findtext("object/coordinate/yc"), root.findtext("sigma")) == ("5.5", "1.1", "0.75")


def test_oblong_frames(tmp_path):
    plane = FocalPlane(shape=(4, 7))
    scene = random_targets(5, np.random.default_rng(0), shape=(4, 7))
    write_grokcso(tmp_path, plane.render(scene), scene)
    again = read_grokcso(tmp_path, shape=(4, 7))
    assert again.frames.shape == (5, 4, 7) and same_targets(again.targets, scene)
    root = ET.parse(tmp_path / "Annotations" / "CSO0.xml").getroot()
    assert (root.findtext("size/width"), root.findtext("size/height")) == ("7", "4")
    refused(tmp_path, "4 x 7 px", "expected 7 x 4", "shape=(4, 7)", shape=(7, 4))


def test_a_frame_without_objects_is_legal(tmp_path):
    scene = Targets(np.zeros((2, 3, 2)), np.ones((2, 3)), [0, 0])
    write_grokcso(tmp_path, np.zeros((2, 11, 11), np.uint8), scene)
    again = read_grokcso(tmp_path)
    assert again.targets.count.tolist() == [0, 0] and again.frames.shape == (2, 11, 11)


def test_natural_order_of_numbers_not_directory_order(folder, data, monkeypatch):
    listing = grokcso.Path.iterdir
    monkeypatch.setattr(grokcso.Path, "iterdir", lambda self: reversed(sorted(listing(self))))
    np.testing.assert_array_equal(read_grokcso(folder).frames, data.frames)  # image_2 before image_10


def test_numbers_may_have_gaps_zeros_in_front_and_an_underscore(tmp_path, data):
    for part in ("cso_img", "Annotations"):
        (tmp_path / part).mkdir()
    write_grokcso(tmp_path / "plain", *data)
    for i, number in enumerate([90_000, 90_007, 99_999]):
        frame_path(tmp_path / "plain", i).rename(tmp_path / "cso_img" / f"image_{number:06}.png")
        annotation_path(tmp_path / "plain", i).rename(tmp_path / "Annotations" / f"CSO_{number:05}.xml")  # as the toolkit's README prints them
    np.testing.assert_array_equal(read_grokcso(tmp_path).frames, data.frames[:3])


def test_other_and_hidden_files_are_ignored(folder, data):
    for name in (".DS_Store", "._image_1.png", "Thumbs.db", "preview.png", "image_x.png", "image_1.png.bak"):
        (folder / "cso_img" / name).write_bytes(b"junk")
    (folder / "cso_img" / "image_99.png").mkdir()
    (folder / "Annotations" / "notes.xml").write_bytes(b"junk")
    assert len(read_grokcso(folder).frames) == 12


def test_annotations_without_metadata_are_readable(folder):
    annotation_path(folder).write_bytes(f"<annotation>{target_xml('1', '2', '3', name='')}</annotation>".encode())
    assert read_grokcso(folder).targets.lists()[3].tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "latin-1"])
def test_encodings_spaces_comments_and_formats_of_numbers(folder, encoding):
    text = f'<?xml version="1.0" encoding="{encoding}"?><!-- a comment -->' + small_xml(target_xml(" 5 ", "+4.5e0", "2.4E2")).decode()
    annotation_path(folder).write_bytes(text.encode(encoding))
    assert read_grokcso(folder).targets.lists()[3].tolist() == [[5, 4.5, 240]]


def test_ten_thousand_frames_would_take_seconds(tmp_path):
    data = csist100k("test", 300, cache=False)
    begin = time.process_time()
    write_grokcso(tmp_path, *data)
    read_grokcso(tmp_path)
    assert time.process_time() - begin < 2


# Folders


def test_missing_folder(tmp_path):
    refused(tmp_path / "nowhere", tmp_path / "nowhere", "is not a folder", "cso_img", error=FileNotFoundError)
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", "is not a folder", error=FileNotFoundError)


@pytest.mark.parametrize("part", ["cso_img", "Annotations"])
def test_missing_subfolder(folder, part):
    (folder / part).rename(folder / "elsewhere")
    refused(folder, folder, f"no folder {part}", "image_<number>.png", error=FileNotFoundError)


def test_the_folder_above_the_splits_gets_a_hint(folder):
    refused(folder.parent, f"did you mean {folder}?", error=FileNotFoundError)


def test_no_frames_at_all(tmp_path):
    (tmp_path / "cso_img").mkdir()
    (tmp_path / "Annotations").mkdir()
    refused(tmp_path, "no frames", tmp_path / "cso_img", "image_<number>.png", error=FileNotFoundError)


def test_frame_without_annotation(folder):
    annotation_path(folder).unlink()
    refused(folder, frame_path(folder), "no annotation", "CSO3.xml", "1 of 12", error=FileNotFoundError)


def test_annotation_without_frame(folder):
    frame_path(folder).unlink()
    frame_path(folder, 7).unlink()
    refused(folder, annotation_path(folder), "no frame", "image_3.png", "2 of 12", error=FileNotFoundError)


@pytest.mark.parametrize("maker, copy, expected", [(frame_path, "image_03.png", "image_<number>.png"), (annotation_path, "CSO003.xml", "CSO<number>.xml")])
def test_two_spellings_of_one_number(folder, maker, copy, expected):
    original = maker(folder)
    (original.parent / copy).write_bytes(original.read_bytes())
    refused(folder, original.name, copy, "same number 3", expected, "rename")


# PNG


@pytest.mark.parametrize("width, height", [(12, 11), (11, 12), (33, 33), (1, 1)])
def test_wrong_frame_size(folder, width, height):
    frame_path(folder).write_bytes(png(width, height))
    refused(folder, frame_path(folder), f"{height} x {width} px", "expected 11 x 11", f"shape=({height}, {width})")


@pytest.mark.parametrize(
    "mode, kind",
    [
        ("I;16", "16-bit grey"),
        ("RGB", "8-bit RGB colour"),
        ("RGBA", "8-bit RGB colour with alpha"),
        ("LA", "8-bit grey with alpha"),
        ("P", "palette"),
        ("1", "1-bit grey"),
    ],
)
def test_other_kinds_of_png(folder, mode, kind):
    Image.new(mode, (11, 11)).save(frame_path(folder))
    fix = "scale its levels to 0 .. 255" if mode == "I;16" else "mode 'L'"  # Pillow's mode 'L' would clip 16 bits
    refused(folder, frame_path(folder), kind, "8-bit grey", fix)


def test_four_bit_grey(folder):
    frame_path(folder).write_bytes(png(depth=4, raw=bytes(7) * 11))
    refused(folder, frame_path(folder), "4-bit grey")


@pytest.mark.parametrize("content", [b"", b"\x89PNG", b"GIF89a" + bytes(100), b"\x89PNG\r\n\x1a\n" + bytes(40), b"<svg/>" * 20])
def test_not_a_png(folder, content):
    frame_path(folder).write_bytes(content)
    refused(folder, frame_path(folder), "not a PNG", "download it again")


def test_other_formats_under_a_png_name(folder):
    Image.new("L", (11, 11)).save(frame_path(folder), format="BMP")
    refused(folder, frame_path(folder), "not a PNG")


def test_every_truncation_is_noticed(folder):
    whole = frame_path(folder).read_bytes()
    for length in [*range(0, len(whole) - 12, 5), len(whole) - 13]:  # the last 12 bytes are the empty IEND chunk
        frame_path(folder).write_bytes(whole[:length])
        refused(folder, frame_path(folder), "cut short", "download it again")


def test_every_flipped_byte_is_noticed_or_harmless(folder, data):
    whole = frame_path(folder).read_bytes()
    for position in range(len(whole) - 12):
        frame_path(folder).write_bytes(whole[:position] + bytes([whole[position] ^ 0x04]) + whole[position + 1 :])
        refused(folder, frame_path(folder))


@pytest.mark.parametrize("rows, word", [(0, "shorter"), (5, "shorter"), (12, "longer")])
def test_missing_and_surplus_rows_are_noticed(folder, rows, word):
    frame_path(folder).write_bytes(png(raw=bytes(12) * rows))  # sound in every checksum
    refused(folder, frame_path(folder), "damaged", f"{word} than 11 rows")


def test_pixel_data_in_several_chunks(folder):
    packed = zlib.compress(bytes(12 * 11))
    header = png()[:33]
    frame_path(folder).write_bytes(header + b"".join(chunk(b"IDAT", packed[i : i + 3]) for i in range(0, len(packed), 3)) + chunk(b"IEND", b""))
    assert (read_grokcso(folder).frames[3] == 0).all()


def test_decompression_bomb_is_refused_by_its_header(folder, monkeypatch):
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened before the header was checked"))
    frame_path(folder, 0).write_bytes(png(60_000, 60_000, raw=bytes(1000)))
    begin = time.process_time()
    refused(folder, frame_path(folder, 0), "60000 x 60000", "expected 11 x 11")
    assert time.process_time() - begin < 1


def test_pixel_data_bomb_behind_an_honest_header(folder):
    frame_path(folder).write_bytes(png(raw=bytes(50_000_000)))
    begin = time.process_time()
    refused(folder, frame_path(folder), "longer than 11 rows")
    assert time.process_time() - begin < 1


def test_text_chunk_bomb(folder):
    whole = png()
    frame_path(folder).write_bytes(whole[:33] + chunk(b"zTXt", b"note\0\0" + zlib.compress(bytes(20_000_000))) + whole[33:])
    refused(folder, frame_path(folder), "damaged")


@pytest.mark.parametrize("maker", [frame_path, annotation_path])
def test_huge_files_cost_nothing(folder, maker):
    with maker(folder).open("r+b") as file:
        file.truncate(2**30)  # sparse: 1 GB on paper
    begin = time.process_time()
    refused(folder, maker(folder), "1,073,741,824 bytes", "allowed")
    assert time.process_time() - begin < 1


# XML


@pytest.mark.parametrize(
    "content",
    [b"", b"not xml", b"<annotation>", b"<annotation></object></annotation>", b"<annotation/><annotation/>", b"<annotation>&bomb;</annotation>", bytes(50)],
)
def test_malformed_xml(folder, content):
    annotation_path(folder).write_bytes(content)
    refused(folder, annotation_path(folder), "well-formed XML", "repair")


@pytest.mark.parametrize("encoding", ["nonsense", "utf-7", "gb18030"])
def test_unknown_encodings(folder, encoding):
    annotation_path(folder).write_bytes(f'<?xml version="1.0" encoding="{encoding}"?>'.encode() + small_xml())
    refused(folder, annotation_path(folder), "well-formed XML")


def laughs():
    lines = ['<!ENTITY lol0 "lol">'] + [f'<!ENTITY lol{i} "{f"&lol{i - 1};" * 10}">' for i in range(1, 12)]
    return f"<!DOCTYPE annotation [{''.join(lines)}]>" + small_xml("&lol11;").decode()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize(
    "text",
    [
        laughs(),
        '<!DOCTYPE annotation [<!ENTITY secret SYSTEM "file:///etc/passwd">]>' + small_xml(target_xml(x="&secret;")).decode(),
        '<!DOCTYPE annotation SYSTEM "http://127.0.0.1:9/annotation.dtd">' + small_xml().decode(),
        '<!DOCTYPE annotation [<!ENTITY % p SYSTEM "http://127.0.0.1:9/p"> %p;]>' + small_xml().decode(),
        "<!DOCTYPE annotation>" + small_xml().decode(),
    ],
    ids=["billion laughs", "external entity", "external DTD", "parameter entity", "bare DOCTYPE"],
)
def test_document_types_are_refused(folder, text, encoding):
    annotation_path(folder).write_bytes(text.encode(encoding))
    begin = time.process_time()
    refused(folder, annotation_path(folder), "DOCTYPE or ENTITY", "delete")
    assert time.process_time() - begin < 1


def test_xml_just_over_the_cap(folder):
    annotation_path(folder).write_bytes(small_xml() + b" " * 1_000_000)
    refused(folder, annotation_path(folder), "1,000,000 allowed for an annotation")


def test_deep_nesting(folder):
    annotation_path(folder).write_bytes(b"<a>" * 140_000 + b"</a>" * 140_000)
    refused(folder, annotation_path(folder), "deep")


def test_wrong_root(folder):
    annotation_path(folder).write_bytes(small_xml(root="annotations"))
    refused(folder, annotation_path(folder), "<annotations>", "<annotation>")


@pytest.mark.parametrize("field", ["xc", "yc", "brightness", "coordinate"])
def test_missing_fields(folder, field):
    text = re.sub(f"<{field}>.*</{field}>", "", target_xml())
    annotation_path(folder).write_bytes(small_xml(target_xml() + text))
    refused(folder, annotation_path(folder), "object 2", f"<coordinate/{'xc' if field == 'coordinate' else field}>", "exactly one")


def test_repeated_fields(folder):
    annotation_path(folder).write_bytes(small_xml(target_xml().replace("<yc>", "<xc>1</xc><yc>")))
    refused(folder, annotation_path(folder), "object 1", "2 fields <coordinate/xc>")


@pytest.mark.parametrize("field", ["x", "y", "brightness"])
@pytest.mark.parametrize(
    "text",
    ["", " ", "five", "nan", "-NaN", "sNaN", "inf", "-Infinity", "1e999", "1e99999999999999999999", "1_0", "4,5", "0x10", "4.5 4.5", "9" * 500_000],
    ids=lambda text: text[:8] or "empty",
)
def test_fields_that_are_no_finite_number(folder, field, text):
    annotation_path(folder).write_bytes(small_xml(target_xml(**{field: text})))
    message = refused(folder, annotation_path(folder), "object 1", {"x": "xc", "y": "yc"}.get(field, field), "finite decimal number such as 4.5")
    assert len(message) < 500


def test_negative_brightness(folder):
    annotation_path(folder).write_bytes(small_xml(target_xml() + target_xml(brightness="-0.5")))
    refused(folder, annotation_path(folder), "object 2", "-0.5", ">= 0")


def test_other_kinds_of_object(folder):
    annotation_path(folder).write_bytes(small_xml(target_xml(name="<name>Bird</name>")))
    refused(folder, annotation_path(folder), "object 1", "'Bird'", "'Target'")


@pytest.mark.parametrize(
    "size, words",
    [("<height>12</height><width>11</width>", "height 12"), ("<height>11</height><width>5</width>", "width 5"), ("<width>x</width>", "finite decimal")],
)
def test_stated_size_must_fit(folder, size, words):
    annotation_path(folder).write_bytes(small_xml(size=f"<size>{size}</size>"))
    refused(folder, annotation_path(folder), words)


def test_more_targets_than_pixels(folder):
    annotation_path(folder).write_bytes(small_xml(target_xml() * 122))
    refused(folder, annotation_path(folder), "122 targets", "at most one per pixel, 121")


@pytest.mark.parametrize("x, y", [("20", "5"), ("5", "-3"), ("11.6", "0.2"), ("-0.6", "10.6")])
def test_targets_off_the_frame(folder, x, y):
    annotation_path(folder).write_bytes(small_xml(target_xml() + target_xml(x, y)))
    message = refused(folder, annotation_path(folder), f"row {x}, column {y}", "off the 11 x 11 frame", "-0.5 .. 10.5")
    assert "one_based" not in message


# Pixels counted from 1


def test_positions_that_only_make_sense_from_one_name_the_flag(folder):
    annotation_path(folder).write_bytes(small_xml(target_xml("11.2", "5")))
    refused(folder, annotation_path(folder), "row 11.2, column 5", "count pixels from 1", "one_based=True")
    annotation_path(folder).write_bytes(small_xml(target_xml("0.2", "5")))
    refused(folder, "column", "count pixels from 0", "one_based=False", one_based=True)


def interior(n=60):
    rng = np.random.default_rng(5)
    scene = random_targets(n, rng, cells=rng.integers(2, 9, (n, 2)))
    return FocalPlane().render(scene), scene


@pytest.mark.parametrize("written, read", [(True, False), (False, True)])
def test_a_slip_of_one_pixel_that_no_single_file_betrays_is_noticed(tmp_path, written, read):
    frames, scene = interior()
    write_grokcso(tmp_path, frames, scene, one_based=written)
    with pytest.warns(UserWarning, match=f"the light of most frames lies 1.4. px.*one_based={written}"):
        read_grokcso(tmp_path, one_based=read)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same_targets(read_grokcso(tmp_path, one_based=written).targets, scene)


def test_swapped_axes_are_noticed(tmp_path):
    frames, scene = interior()
    write_grokcso(tmp_path / "a", frames.transpose(0, 2, 1), scene)
    with pytest.warns(UserWarning, match="rows and columns seem to be swapped"):
        read_grokcso(tmp_path / "a")
    write_grokcso(tmp_path / "b", frames.transpose(0, 2, 1), scene, one_based=True)
    with pytest.warns(UserWarning, match="one_based=True; also rows and columns"):
        read_grokcso(tmp_path / "b")


def test_unrelated_frames_raise_no_false_alarm(tmp_path):
    _, scene = interior()
    noise = np.random.default_rng(0).integers(0, 256, (60, 11, 11), dtype=np.uint8)
    write_grokcso(tmp_path / "noise", noise, scene)
    write_grokcso(tmp_path / "dark", np.zeros_like(noise), scene)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_grokcso(tmp_path / "noise"), read_grokcso(tmp_path / "dark")


# Writing


@pytest.mark.parametrize(
    "frames, message",
    [
        (np.zeros((12, 11, 11)), "uint8.*float64"),
        (np.zeros((12, 11, 11), np.uint16), "uint8.*uint16"),
        (np.zeros((12, 121), np.uint8), r"shape \(n, rows, columns\)"),
        (np.zeros((12, 1, 11, 11), np.uint8), r"shape \(n, rows, columns\)"),
        (np.zeros((0, 11, 11), np.uint8), "n >= 1"),
        (np.zeros((11, 11, 11), np.uint8), "11 frames but targets for 12"),
        (np.zeros((12, 3, 3), np.uint8), "off the 3 x 3 frame"),
    ],
)
def test_bad_frames_are_not_written(tmp_path, data, frames, message):
    with pytest.raises(ValueError, match=message):
        write_grokcso(tmp_path / "new", frames, data.targets)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("sigma", [0, -1, np.nan, np.inf, "0.5", None])
def test_bad_sigma_is_not_written(tmp_path, data, sigma):
    with pytest.raises(ValueError, match="sigma must be a PSF width in pixels > 0"):
        write_grokcso(tmp_path / "new", *data, sigma=sigma)
    assert not (tmp_path / "new").exists()


def test_bad_targets_are_not_written(tmp_path):
    frame = np.zeros((1, 11, 11), np.uint8)
    with pytest.raises(ValueError, match="must be >= 0"):
        write_grokcso(tmp_path / "new", frame, Targets([[[5.0, 5.0]]], [[-1.0]], [1]))
    with pytest.raises(ValueError, match="off the 11 x 11 frame.*-0.5 .. size - 0.5"):
        write_grokcso(tmp_path / "new", frame, Targets([[[5.0, 10.6]]], [[1.0]], [1]))
    with pytest.raises(ValueError, match="122 targets"):
        write_grokcso(tmp_path / "new", frame, Targets(np.ones((1, 122, 2)), np.ones((1, 122)), [122]))
    assert not (tmp_path / "new").exists()


def test_nothing_is_overwritten_unasked(folder, data):
    before = frame_path(folder).read_bytes()
    with pytest.raises(FileExistsError, match="already holds 12 files.*overwrite=True"):
        write_grokcso(folder, 255 - data.frames, data.targets)
    assert frame_path(folder).read_bytes() == before
    write_grokcso(folder, 255 - data.frames, data.targets, overwrite=True)
    np.testing.assert_array_equal(read_grokcso(folder).frames, 255 - data.frames)


def test_overwriting_neither_deletes_nor_mixes(folder, data):
    with pytest.raises(FileExistsError, match=r"image_\d+.png would stay among the new files.*never deletes"):
        write_grokcso(folder, data.frames[:5], data.targets[:5], overwrite=True)
    assert same_targets(read_grokcso(folder).targets, data.targets)


def test_a_failed_write_loses_no_file_and_leaves_no_part(folder, data, monkeypatch):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(grokcso.os, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        write_grokcso(folder, 255 - data.frames, data.targets, overwrite=True)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_without_pillow_the_error_names_the_command(folder, data, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    for call in (lambda: read_grokcso(folder), lambda: write_grokcso(folder / "new", *data)):
        with pytest.raises(ImportError, match=re.escape('pip install "csist[io]"')):
            call()


def test_toolkit_style_files_are_read(tmp_path, data):
    """An annotation as the toolkit's own writer prints it (tabs, declaration without encoding) and a PNG by another encoder setting."""
    for part in ("cso_img", "Annotations"):
        (tmp_path / part).mkdir()
    stream = io.BytesIO()
    Image.fromarray(data.frames[0]).save(stream, format="PNG", compress_level=0, optimize=False)
    (tmp_path / "cso_img" / "image_7.png").write_bytes(stream.getvalue())
    rows = data.targets.lists()[0]
    objects = "".join("\n\t" + target_xml(*(repr(float(v)) for v in row)).replace("><", ">\n\t\t<") for row in rows)
    size = "<size>\n\t<width>11</width><height>11</height><depth>1</depth></size>"
    (tmp_path / "Annotations" / "CSO7.xml").write_text(f'<?xml version="1.0" ?>\n{small_xml(objects, size=size).decode()}\n')
    again = read_grokcso(tmp_path)
    np.testing.assert_array_equal(again.frames, data.frames[:1])
    assert again.targets.lists()[0].tolist() == rows.tolist()
