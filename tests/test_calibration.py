"""Data in: presets, folders, arrays, the arithmetic, and parts that share nothing."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import zipfile
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgecompile import calibration, types
from edgecompile.calibration import arrays as array_files
from edgecompile.calibration import images, split
from edgecompile.calibration.pool import Pool
from edgecompile.calibration.preset import Preprocessing
from edgecompile.calibration.samples import RandomSource
from edgecompile.errors import InputError
from edgecompile.types import TensorSpec

RGB = (TensorSpec(name="x", shape=(1, 3, 16, 16), dtype="float32"),)
BUILTIN = ("cifar10", "cifar10-imagenet-stats", "digits", "imagenet", "minus-one-to-one", "raw-255", "zero-to-one")


def spec(*shape: int, dtype: str = "float32") -> tuple[TensorSpec, ...]:
    return (TensorSpec(name="x", shape=shape, dtype=dtype),)


def save(path: Path, array: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def folder(root: Path, classes: dict[str, int], size: int = 16) -> Path:
    """A labelled folder of PNG files that all differ."""
    for number, (name, count) in enumerate(classes.items()):
        for i in range(count):
            save(root / name / f"{i:03}.png", noise(1000 * number + i, size, size, 3))
    return root


def raw() -> calibration.Preset:
    return calibration.load_preset("raw-255")


def part_hashes(samples: calibration.Samples) -> set[str]:
    return {hashlib.sha256(sample["x"].tobytes()).hexdigest() for sample in samples}


# ---------------------------------------------------------------------------------------------------- presets


def test_the_built_in_presets_load_and_survive_json() -> None:
    assert calibration.preset_names() == BUILTIN
    for name in BUILTIN:
        preset = calibration.load_preset(name)
        assert preset.name == name
        assert preset.description
        assert types.decode(types.encode(preset), calibration.Preset) == preset


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("colour = 'rgb'", ["'colour'", "did you mean 'color'?"]),
        ("[values]\nmeans = [0.5]", ["'values.means'", "'values.mean'"]),
        ("[resize]\nmode = 'stretch'", ["stretch"]),
        ("[values]\nmean = [0.1, 0.2]", ["values.mean has 2 entries", "1 or 3"]),
        ("[values]\nstd = [0.0]", ["values.std must be above 0"]),
        ("[values]\nrange = [1.0, 1.0]", ["values.range"]),
        ("[values]\nmean = [nan]", ["finite"]),
        ("[resize]\ncrop_fraction = 0.5", ["belong to mode 'shorter-side'"]),
        ("[resize]\nmode = 'shorter-side'\ncrop_fraction = 0.0", ["crop_fraction must be above 0"]),
        ("[detection]\nboxes = 'b'", ["scores"]),
        ("[detection]\nboxes = 'b'\nscores = 's'\nboxformat = 'xyxy'", ["'detection.box_format'"]),
        ("color = [", ["not a preset"]),
    ],
)
def test_a_faulty_preset_is_refused_with_file_and_key(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        calibration.load_preset(str(path))
    for word in (*words, str(path)):
        assert word in str(caught.value)


def test_an_unknown_preset_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'imagenet'"):
        calibration.load_preset("imagnet")


def test_a_content_folder_wins_over_the_built_ins(tmp_path: Path) -> None:
    (tmp_path / "calibration").mkdir()
    (tmp_path / "calibration" / "imagenet.toml").write_text("color = 'bgr'\n")
    assert calibration.load_preset("imagenet", tmp_path).color == "bgr"


# ------------------------------------------------------------------------------------------ layout and arithmetic


@pytest.mark.parametrize(
    ("preset", "shape", "layout"),
    [
        ("imagenet", (1, 3, 224, 224), "nchw"),
        ("imagenet", (1, 224, 224, 3), "nhwc"),
        ("digits", (1, 1, 8, 8), "nchw"),
        ("digits", (1, 8, 8, 1), "nhwc"),
        ("digits", (1, 8, 8), "nhw"),
        ("digits", (1, 64), "flat"),
    ],
)
def test_the_layout_is_read_from_the_channel_axis(preset: str, shape: tuple[int, ...], layout: str) -> None:
    assert calibration.resolve(calibration.load_preset(preset), spec(*shape)[0]).layout == layout


def test_an_ambiguous_layout_is_never_guessed() -> None:
    with pytest.raises(InputError, match="both axis 1 and axis 3"):
        calibration.resolve(raw(), spec(1, 3, 8, 3)[0])
    assert calibration.resolve(raw(), spec(1, 3, 8, 3)[0], input_layout="nhwc").height == 3


def test_a_preset_file_can_settle_the_layout(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('layout = "nhwc"\n')
    preset = calibration.load_preset(str(tmp_path / "mine.toml"))
    assert calibration.resolve(preset, spec(1, 3, 8, 3)[0]).layout == "nhwc"


@pytest.mark.parametrize("shape", [(1, 1, 16, 16), (1, 4, 16, 16), (1, 16), (4, 3, 16, 16)])
def test_an_input_that_the_preset_cannot_fill_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="input 'x' has shape"):
        calibration.resolve(raw(), spec(*shape)[0])


def resolved(name: str, *shape: int) -> Preprocessing:
    return calibration.resolve(calibration.load_preset(name), spec(*shape)[0])


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("zero-to-one", lambda p: p / 255),
        ("minus-one-to-one", lambda p: p / 127.5 - 1),
        ("raw-255", lambda p: p),
        ("imagenet", lambda p: (p / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]),
        ("cifar10", lambda p: (p / 255 - [0.4914, 0.4822, 0.4465]) / [0.2470, 0.2435, 0.2616]),
        ("cifar10-imagenet-stats", lambda p: (p / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]),
    ],
)
def test_the_values_are_those_of_the_formula_that_the_preset_stands_for(name: str, formula: object) -> None:
    pixels = noise(0, 16, 16, 3)
    expected = formula(pixels.astype(np.float64))  # type: ignore[operator]
    nhwc = images.to_input(pixels, resolved(name, 1, 16, 16, 3))
    assert nhwc.shape == (1, 16, 16, 3)
    assert nhwc.dtype == np.float32
    np.testing.assert_allclose(nhwc[0], expected, atol=2e-6)
    np.testing.assert_array_equal(images.to_input(pixels, resolved(name, 1, 3, 16, 16))[0], nhwc[0].transpose(2, 0, 1))


def test_an_integer_input_gets_whole_numbers_and_refuses_what_does_not_fit() -> None:
    pixels = noise(0, 4, 4, 3)
    prep = calibration.resolve(raw(), spec(1, 4, 4, 3, dtype="uint8")[0])
    np.testing.assert_array_equal(images.to_input(pixels, prep)[0], pixels)
    negative = calibration.load_preset("minus-one-to-one")
    with pytest.raises(InputError, match="outside uint8"):
        images.to_input(pixels, calibration.resolve(negative, spec(1, 4, 4, 3, dtype="uint8")[0]))


def test_bgr_is_rgb_with_the_channels_turned(tmp_path: Path) -> None:
    (tmp_path / "bgr.toml").write_text("color = 'bgr'\n[values]\nrange = [0.0, 255.0]\nmean = [1.0, 2.0, 3.0]\n")
    prep = calibration.resolve(calibration.load_preset(str(tmp_path / "bgr.toml")), spec(1, 4, 4, 3)[0])
    pixels = noise(0, 4, 4, 3)
    np.testing.assert_array_equal(images.to_input(pixels, prep)[0], pixels[..., ::-1].astype(np.float32) - [1, 2, 3])


def test_shorter_side_and_centre_crop() -> None:
    prep = resolved("imagenet", 1, 3, 56, 56)
    assert prep.shorter_side == 64  # 56 / 0.875
    wide = Image.fromarray(noise(0, 100, 200, 3))
    scaled = np.asarray(wide.resize((128, 64), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(images.pixels(wide, prep), scaled[4:60, 36:92])


def test_a_fixed_shorter_side_below_the_input_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text("[resize]\nmode = 'shorter-side'\nshorter_side = 32\n")
    with pytest.raises(InputError, match="resizes the shorter side to 32, but the input is 56 x 56"):
        calibration.resolve(calibration.load_preset(str(tmp_path / "p.toml")), spec(1, 3, 56, 56)[0])


def test_letterbox_keeps_the_whole_image_and_pads(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text("[resize]\nmode = 'letterbox'\npad_value = 114\n[values]\nrange = [0.0, 255.0]\n")
    prep = calibration.resolve(calibration.load_preset(str(tmp_path / "p.toml")), spec(1, 3, 32, 32)[0])
    found = images.pixels(Image.fromarray(noise(0, 10, 20, 3)), prep)
    assert (found[:8] == 114).all()
    assert (found[24:] == 114).all()
    assert not (found[8:24] == 114).all(axis=(1, 2)).any()


def test_equal_size_images_are_not_resampled() -> None:
    pixels = noise(0, 16, 16, 3)
    np.testing.assert_array_equal(images.pixels(Image.fromarray(pixels), resolved("raw-255", 1, 3, 16, 16)), pixels)


# --------------------------------------------------------------------------------------------------- decoding


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    pixels = noise(0, 8, 16, 3)
    path = save(tmp_path / "turned.png", pixels, exif=exif)
    found = np.asarray(images.decode(path, gray=False))
    np.testing.assert_array_equal(found, np.rot90(pixels, k=-1))


def test_palette_gray_alpha_cmyk_and_16_bit_images_are_read(tmp_path: Path) -> None:
    pixels = noise(0, 8, 8, 3)
    picture = Image.fromarray(pixels)
    gray = picture.convert("L")
    picture.convert("P", palette=Image.Palette.ADAPTIVE, colors=256).save(tmp_path / "p.png")
    gray.save(tmp_path / "l.png")
    picture.convert("RGBA").save(tmp_path / "rgba.png")
    Image.merge("LA", (gray, gray)).save(tmp_path / "la.png")
    picture.convert("CMYK").save(tmp_path / "cmyk.tif")
    Image.fromarray(np.asarray(gray).astype(np.uint16) * 257).save(tmp_path / "deep.png")
    picture.convert("P").save(tmp_path / "clear.gif", transparency=0)
    for path in sorted(tmp_path.iterdir()):
        assert np.asarray(images.decode(path, gray=False)).shape == (8, 8, 3), path
        assert np.asarray(images.decode(path, gray=True)).shape == (8, 8), path
    np.testing.assert_array_equal(np.asarray(images.decode(tmp_path / "deep.png", gray=True)), np.asarray(gray))
    np.testing.assert_array_equal(np.asarray(images.decode(tmp_path / "rgba.png", gray=False)), pixels)
    assert (np.asarray(images.decode(tmp_path / "l.png", gray=False)) == np.asarray(gray)[:, :, None]).all()


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 100_000
    with pytest.raises(images.ImageFault, match=r"exceeds limit|20000 x 20000"):
        images.decode(tmp_path / "bomb.png", gray=False)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_mutilated_images_give_a_fault_or_a_picture_and_nothing_else(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM"]))
    buffer = io.BytesIO()
    Image.fromarray(noise(0, 12, 12, 3)).save(buffer, kind)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(1, len(content)))]
    try:
        with images.no_pillow_warnings():
            picture = images.decode(io.BytesIO(bytes(content)), gray=False)  # type: ignore[arg-type]
    except images.ImageFault:
        return
    assert picture.mode == "RGB"


# ---------------------------------------------------------------------------------------------- image folders


def test_a_labelled_folder_gives_three_disjoint_balanced_parts(tmp_path: Path) -> None:
    root = folder(tmp_path / "data", {"cat": 40, "ant": 40, "dog": 20})
    found = calibration.load(raw(), RGB, data=root, calibration_samples=10)
    parts = (found.calibration, found.validation, found.evaluation)
    assert found.class_names == ("ant", "cat", "dog")
    assert [len(part) for part in parts] == [10, 40, 50]
    for part in parts:
        assert part.labels is not None
        assert np.bincount(part.labels).tolist() == [round(len(part) * share) for share in (0.4, 0.4, 0.2)]
    names = [set(part.names) for part in parts]
    assert not names[0] & names[1] | names[0] & names[2] | names[1] & names[2]
    assert set.union(*names) == {p.relative_to(root).as_posix() for p in root.rglob("*.png")}
    for sample, name, label in zip(found.calibration, found.calibration.names, found.calibration.labels, strict=True):
        np.testing.assert_array_equal(sample["x"][0].transpose(1, 2, 0), np.asarray(Image.open(root / name)))
        assert found.class_names[label] == name.split("/")[0]


def test_the_seed_decides_the_split_and_the_digest(tmp_path: Path) -> None:
    root = folder(tmp_path / "data", {"a": 20, "b": 20})
    first = calibration.load(raw(), RGB, data=root, seed=1)
    again = calibration.load(raw(), RGB, data=Path(shutil.copytree(root, tmp_path / "elsewhere")), seed=1)
    other = calibration.load(raw(), RGB, data=root, seed=2)
    assert first.digest == again.digest
    assert first.evaluation.names == again.evaluation.names
    assert first.digest != other.digest
    assert first.evaluation.names != other.evaluation.names
    (root / "a" / "000.png").unlink()
    assert calibration.load(raw(), RGB, data=root, seed=1).digest != first.digest


def test_the_digest_depends_on_the_preset(tmp_path: Path) -> None:
    root = folder(tmp_path / "data", {"a": 4, "b": 4})
    assert (
        calibration.load(raw(), RGB, data=root).digest
        != calibration.load(calibration.load_preset("zero-to-one"), RGB, data=root).digest
    )


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    for i in range(10):
        save(tmp_path / "data" / f"{i}.png", noise(i, 16, 16, 3))
    (tmp_path / "data" / "readme.txt").write_text("ignored")
    (tmp_path / "data" / "._0.png").write_text("what macOS leaves behind")
    found = calibration.load(raw(), RGB, data=tmp_path / "data")
    assert found.evaluation.labels is None
    assert found.class_names is None
    assert found.skipped == 0
    assert sum(map(len, (found.calibration, found.validation, found.evaluation))) == 10


def test_identical_files_stay_in_one_part(tmp_path: Path) -> None:
    root = folder(tmp_path / "data", {"a": 15, "b": 15})
    for i in range(15):
        shutil.copy(root / "a" / f"{i:03}.png", root / "b" / f"copy{i}.png")
    for seed in range(5):
        found = calibration.load(raw(), RGB, data=root, seed=seed)
        hashes = [part_hashes(part) for part in (found.calibration, found.validation, found.evaluation)]
        assert not hashes[0] & hashes[1] | hashes[0] & hashes[2] | hashes[1] & hashes[2]
        assert len(set.union(*hashes)) == 30


@settings(max_examples=100, deadline=None)
@given(
    contents=st.lists(st.integers(0, 12), min_size=1, max_size=60),
    classes=st.integers(1, 5),
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=3),
    seed=st.integers(0, 9),
)
def test_no_split_ever_shares_a_sample(contents: list[int], classes: int, counts: list[int], seed: int) -> None:
    pool = Pool(
        origin="x",
        source=RandomSource(inputs=(), seed=0),
        names=tuple(map(str, range(len(contents)))),
        hashes=tuple(map(str, contents)),
        labels=tuple(i % classes for i in range(len(contents))),
    )
    rest, seen = split.ordered_groups(pool, seed), set()
    assert sorted(split.flat(rest)) == list(range(len(contents)))
    for count in counts:
        part, rest = split.take(rest, count)
        hashes = {pool.hashes[i] for i in split.flat(part)}
        assert len(split.flat(part)) >= count or not rest
        assert not hashes & seen
        seen |= hashes


def test_an_evaluation_folder_is_used_whole(tmp_path: Path) -> None:
    data = folder(tmp_path / "data", {"a": 10, "b": 10})
    other = tmp_path / "test"
    for i in range(7):
        save(other / "ab"[i % 2] / f"{i}.png", noise(50_000 + i, 16, 16, 3))
    found = calibration.load(raw(), RGB, data=data, evaluation=other)
    assert [len(p) for p in (found.calibration, found.validation, found.evaluation)] == [10, 10, 7]
    assert found.notes == (f"class order: the folder names of {data} and {other}, sorted",)
    assert len(calibration.load(raw(), RGB, data=data, evaluation=other, evaluation_samples=4).evaluation) == 4


def test_what_is_evaluated_takes_no_part_in_calibration(tmp_path: Path) -> None:
    data = folder(tmp_path / "data", {"a": 10, "b": 10})
    test = tmp_path / "test"
    for name in ("a", "b"):
        (test / name).mkdir(parents=True)
        for i in range(3):
            shutil.copy(data / name / f"{i:03}.png", test / name / f"other name {i}.png")
    found = calibration.load(raw(), RGB, data=data, evaluation=test)
    assert any("6 samples" in note and "same content" in note for note in found.notes)
    assert len(found.calibration) + len(found.validation) == 14
    assert not part_hashes(found.evaluation) & (part_hashes(found.calibration) | part_hashes(found.validation))
    with pytest.raises(InputError, match="leave --eval out"):
        calibration.load(raw(), RGB, data=data, evaluation=data)


def test_labels_fix_the_class_order(tmp_path: Path) -> None:
    root = folder(tmp_path / "data", {"ant": 6, "bee": 6})
    (tmp_path / "labels.txt").write_text("bee\nant\ncat\n")
    found = calibration.load(raw(), RGB, data=root, labels=tmp_path / "labels.txt")
    assert found.class_names == ("bee", "ant", "cat")
    assert found.evaluation.labels is not None
    for name, label in zip(found.evaluation.names, found.evaluation.labels, strict=True):
        assert found.class_names[label] == name.split("/")[0]
    assert any("no images of 1 labels: 'cat'" in note for note in found.notes)


def test_class_folders_that_the_labels_do_not_know_are_named(tmp_path: Path) -> None:
    root = folder(tmp_path / "data", {"ant": 6, "bee": 6})
    (tmp_path / "labels.txt").write_text("ant\nwasp\n")
    with pytest.raises(InputError, match=r"not among the labels: 'bee'; labels without a folder: 'wasp'"):
        calibration.load(raw(), RGB, data=root, labels=tmp_path / "labels.txt")


@pytest.mark.parametrize(
    ("text", "words"), [("", "is empty"), ("a\nb\na\n", "line 3 is 'a' again"), ("a\n\nb", "line 2")]
)
def test_a_faulty_labels_file(tmp_path: Path, text: str, words: str) -> None:
    root = folder(tmp_path / "data", {"a": 3, "b": 3})
    (tmp_path / "labels.txt").write_text(text)
    with pytest.raises(InputError, match=words):
        calibration.load(raw(), RGB, data=root, labels=tmp_path / "labels.txt")
    with pytest.raises(InputError, match="cannot read the labels"):
        calibration.load(raw(), RGB, data=root, labels=tmp_path / "nothing.txt")


def test_different_class_folders_in_data_and_eval_need_labels(tmp_path: Path) -> None:
    data, other = folder(tmp_path / "data", {"a": 4, "b": 4}), folder(tmp_path / "test", {"a": 2, "c": 2}, size=20)
    with pytest.raises(InputError, match="different class folders: only one has 'c'"):
        calibration.load(raw(), RGB, data=data, evaluation=other)


def test_an_eval_folder_with_fewer_classes_keeps_the_order_of_the_data(tmp_path: Path) -> None:
    data, other = folder(tmp_path / "data", {"a": 4, "b": 4, "c": 4}), folder(tmp_path / "test", {"c": 3}, size=20)
    found = calibration.load(raw(), RGB, data=data, evaluation=other)
    assert found.evaluation.labels is not None
    assert found.evaluation.labels.tolist() == [2, 2, 2]


def test_corrupt_images_among_good_ones_are_skipped_and_counted(tmp_path: Path) -> None:
    root = folder(tmp_path / "data", {"a": 30, "b": 30})
    content = (root / "a" / "000.png").read_bytes()
    (root / "a" / "000.png").write_bytes(content[: len(content) // 2])
    (root / "b" / "005.png").write_bytes(b"not an image")
    found = calibration.load(raw(), RGB, data=root)
    assert found.skipped == 2
    assert sum(map(len, (found.calibration, found.validation, found.evaluation))) == 58
    note = next(note for note in found.notes if "skipped" in note)
    assert "a/000.png" in note
    assert "b/005.png" in note
    for part in (found.calibration, found.validation, found.evaluation):
        assert len(list(part)) == len(part)


def test_more_than_five_percent_corrupt_images_are_an_error_that_names_some(tmp_path: Path) -> None:
    root = folder(tmp_path / "data", {"a": 30, "b": 30})
    for i in range(5):
        (root / "a" / f"{i:03}.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"5 of 60 samples cannot be used: a/00\d.png .*; and 2 more"):
        calibration.load(raw(), RGB, data=root)


def test_images_that_change_while_the_work_goes_on_give_a_clear_error(tmp_path: Path) -> None:
    root = folder(tmp_path / "data", {"a": 6, "b": 6})
    found = calibration.load(raw(), RGB, data=root)
    found.evaluation.source._cache.clear()  # type: ignore[attr-defined]
    for path in root.rglob("*.png"):
        path.unlink()
    with pytest.raises(InputError, match="cannot now"):
        found.evaluation[0]


def test_folders_that_are_no_data(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no images in"):
        calibration.load(raw(), RGB, data=tmp_path / "empty")
    with pytest.raises(InputError, match="no such data"):
        calibration.load(raw(), RGB, data=tmp_path / "missing")
    (tmp_path / "data.txt").write_text("x")
    with pytest.raises(InputError, match="is not data"):
        calibration.load(raw(), RGB, data=tmp_path / "data.txt")
    mixed = folder(tmp_path / "mixed", {"a": 2, "b": 2})
    save(mixed / "stray.png", noise(0, 16, 16, 3))
    with pytest.raises(InputError, match=r"stray.png.*as well as folders"):
        calibration.load(raw(), RGB, data=mixed)
    with pytest.raises(InputError, match="parts of a data set"):
        calibration.load(raw(), RGB, data=folder(tmp_path / "whole", {"train": 2, "test": 2}))
    with pytest.raises(InputError, match="too few"):
        calibration.load(raw(), RGB, data=folder(tmp_path / "tiny", {"a": 1, "b": 1}))


def test_a_single_folder_of_images_is_unlabelled(tmp_path: Path) -> None:
    found = calibration.load(raw(), RGB, data=folder(tmp_path / "data", {"photos": 8}))
    assert found.evaluation.labels is None
    assert any("single folder" in note for note in found.notes)


def test_images_need_a_preset(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not declared\nchoose a --preset: cifar10, .*imagenet"):
        calibration.load(None, RGB, data=folder(tmp_path / "data", {"a": 4, "b": 4}))


def test_a_model_with_two_inputs_does_not_take_images(tmp_path: Path) -> None:
    two = (*RGB, TensorSpec(name="y", shape=(1, 2), dtype="float32"))
    with pytest.raises(InputError, match="2"):
        calibration.load(raw(), two, data=folder(tmp_path / "data", {"a": 4, "b": 4}))
    with pytest.raises(InputError, match="2 inputs"):
        calibration.load(None, two, data=tmp_path / "data")


def test_samples_are_a_sequence(tmp_path: Path) -> None:
    part = calibration.load(raw(), RGB, data=folder(tmp_path / "data", {"a": 10, "b": 10})).evaluation
    assert len(part[:4]) == 4
    assert part[:4].names == part.names[:4]
    assert part[:4].labels is not None
    np.testing.assert_array_equal(part[2:][0]["x"], part[2]["x"])
    np.testing.assert_array_equal(part[-1]["x"], part[len(part) - 1]["x"])
    with pytest.raises(IndexError):
        part[len(part)]


# ----------------------------------------------------------------------------------------------------- arrays


def arrays(path: Path, **content: np.ndarray) -> Path:
    np.savez(path, **content)
    return path


def test_arrays_without_a_preset_are_fed_as_they_are(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((40, 3, 16, 16)).astype(np.float64)
    labels = np.arange(40) % 4
    found = calibration.load(None, RGB, data=arrays(tmp_path / "d.npz", x=x, labels=labels))
    assert found.preset is None
    for part in (found.calibration, found.validation, found.evaluation):
        for sample, index, label in zip(part, part.indices, part.labels, strict=True):  # type: ignore[arg-type]
            assert sample["x"].dtype == np.float32
            np.testing.assert_array_equal(sample["x"], x[index : index + 1].astype(np.float32))
            assert label == labels[index]
    np.save(tmp_path / "d.npy", x)
    flat = calibration.load(None, RGB, data=tmp_path / "d.npy")
    assert flat.evaluation.labels is None
    assert len(flat.evaluation) == 20


def test_several_inputs_come_by_name(tmp_path: Path) -> None:
    inputs = (TensorSpec(name="a", shape=(1, 2), dtype="float32"), TensorSpec(name="b", shape=(1, 3), dtype="int64"))
    a, b = np.random.default_rng(0).random((9, 2)), np.arange(27).reshape(9, 3)
    found = calibration.load(None, inputs, data=arrays(tmp_path / "d.npz", a=a, b=b))
    sample, index = found.evaluation[0], found.evaluation.indices[0]
    np.testing.assert_array_equal(sample["b"], b[index : index + 1])
    assert sample["a"].shape == (1, 2)
    with pytest.raises(InputError, match=r"arrays \['a', 'c'\], but the model's inputs are 'a', 'b'"):
        calibration.load(None, inputs, data=arrays(tmp_path / "e.npz", a=a, c=b))


def test_raw_arrays_go_through_the_preset(tmp_path: Path) -> None:
    ink = np.random.default_rng(0).integers(0, 17, (12, 8, 8)).astype(np.float64)
    preset = calibration.load_preset("digits")
    found = calibration.load(preset, spec(1, 1, 8, 8), data=arrays(tmp_path / "d.npz", images=ink))
    sample, index = found.evaluation[0], found.evaluation.indices[0]
    np.testing.assert_allclose(sample["x"][0, 0], ink[index] / 16, atol=1e-7)
    hwc = noise(0, 12, 16, 16, 3)
    chw = calibration.load(calibration.load_preset("imagenet"), RGB, data=arrays(tmp_path / "e.npz", x=hwc))
    sample, index = chw.evaluation[0], chw.evaluation.indices[0]
    expected = (hwc[index] / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(sample["x"][0], expected.transpose(2, 0, 1), atol=2e-6)
    same = calibration.load(
        calibration.load_preset("imagenet"), RGB, data=arrays(tmp_path / "f.npz", x=hwc.transpose(0, 3, 1, 2))
    )
    np.testing.assert_array_equal(same.evaluation.source.read(index)["x"], sample["x"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"x": np.zeros((8, 3, 15, 16), np.float32)}, r"shape \(8, 3, 15, 16\), but the model needs \(N, 3, 16, 16\)"),
        ({"x": np.zeros((8, 16, 16, 3), np.float32)}, r"needs \(N, 3, 16, 16\)"),
        ({"x": np.zeros((0, 3, 16, 16), np.float32)}, "no samples"),
        ({"x": np.zeros((8, 3, 16, 16), np.complex64)}, "complex64"),
        ({"x": np.zeros((8, 3, 16, 16)), "labels": np.zeros(7, int)}, "different numbers"),
        ({"x": np.zeros((8, 3, 16, 16)), "labels": np.zeros(8)}, "integers from 0"),
        ({"x": np.zeros((8, 3, 16, 16)), "labels": np.full(8, -1)}, "integers from 0"),
        ({"p": np.zeros((8, 3, 16, 16)), "q": np.zeros(8)}, "inputs are 'x'"),
        ({"x": np.zeros(())}, "no samples"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, content: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(InputError, match=words):
        calibration.load(None, RGB, data=arrays(tmp_path / "d.npz", **content))


def test_arrays_that_cannot_be_read(tmp_path: Path) -> None:
    np.save(tmp_path / "object.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "object.npz", x=np.array([{"a": 1}], dtype=object))
    (tmp_path / "garbage.npy").write_bytes(b"\x93NUMPY garbage")
    (tmp_path / "garbage.npz").write_bytes(b"PK garbage")
    np.save(tmp_path / "whole.npy", np.zeros((9, 3, 16, 16)))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "whole.npy").read_bytes()[:5000])
    for name in ("object.npy", "object.npz", "garbage.npy", "garbage.npz", "cut.npy"):
        with pytest.raises(InputError, match="cannot read"):
            calibration.load(None, RGB, data=tmp_path / name)


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "d.npz", x=np.zeros((100, 3, 16, 16)))
    assert (tmp_path / "d.npz").stat().st_size < 10_000
    monkeypatch.setattr(array_files, "MAX_UNPACKED_BYTES", 100_000)
    with pytest.raises(InputError, match="unpacks to"):
        calibration.load(None, RGB, data=tmp_path / "d.npz")


def test_other_files_in_an_archive_are_no_arrays(tmp_path: Path) -> None:
    path = arrays(tmp_path / "d.npz", x=np.random.default_rng(0).random((8, 3, 16, 16)))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("labels", "cat dog")
    assert calibration.load(None, RGB, data=path).evaluation.labels is None


def test_samples_with_values_that_are_not_finite_are_skipped(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((100, 3, 16, 16))
    x[3, 0, 0, 0] = np.nan
    found = calibration.load(None, RGB, data=arrays(tmp_path / "d.npz", x=x))
    assert found.skipped == 1
    x[:20] = np.inf
    with pytest.raises(InputError, match="not finite"):
        calibration.load(None, RGB, data=arrays(tmp_path / "e.npz", x=x))


def test_raw_bytes_without_a_preset_are_noted(tmp_path: Path) -> None:
    found = calibration.load(None, RGB, data=arrays(tmp_path / "d.npz", x=noise(0, 8, 3, 16, 16)))
    assert any("fed as it is" in note for note in found.notes)


# --------------------------------------------------------------------------------------------------- no data


def test_without_data_the_parts_are_random_and_say_so() -> None:
    inputs = (
        *RGB,
        TensorSpec(name="ids", shape=(1, 4), dtype="int64"),
        TensorSpec(name="m", shape=(1, 4), dtype="bool"),
    )
    found = calibration.load(None, inputs, data=None, seed=3)
    again = calibration.load(None, inputs, data=None, seed=3)
    assert found.synthetic
    assert found.evaluation.synthetic
    assert found.digest == again.digest != calibration.load(None, inputs, data=None, seed=4).digest
    assert "nothing can be said about accuracy" in found.notes[0]
    sample = found.calibration[0]
    assert {name: (array.shape, str(array.dtype)) for name, array in sample.items()} == {
        item.name: (item.shape, item.dtype) for item in inputs
    }
    np.testing.assert_array_equal(sample["x"], again.calibration[0]["x"])
    assert not (sample["x"] == found.evaluation[0]["x"]).any()
    with pytest.raises(InputError, match="no --data"):
        calibration.load(None, RGB, data=None, evaluation=Path("x"))


def test_random_inputs_for_every_integer_type() -> None:
    for dtype in ("uint8", "int8", "int16", "int32", "int64", "bool", "float16", "float64"):
        sample = calibration.random_inputs(spec(1, 5, dtype=dtype), 1)[0]
        assert sample["x"].dtype == dtype


# ------------------------------------------------------------------------------------------- boxes and masks


def coco(root: Path, **changes: object) -> Path:
    """Four 20 x 10 images with one box each of two categories, ids 5 and 3."""
    for i in range(4):
        save(root / "images" / f"{i}.png", noise(i, 10, 20, 3))
    content: dict[str, object] = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 20, "height": 10} for i in range(4)],
        "annotations": [{"image_id": i, "category_id": 5 - 2 * (i % 2), "bbox": [i, 1, 10, 5]} for i in range(4)],
        "categories": [{"id": 5, "name": "dog"}, {"id": 3, "name": "cat"}],
        "info": {"ignored": True},
    }
    (root / "annotations.json").write_text(json.dumps({**content, **changes}))
    return root


def test_coco_boxes_are_put_on_the_input(tmp_path: Path) -> None:
    found = calibration.load(raw(), RGB, data=coco(tmp_path / "d"))
    assert found.class_names == ("cat", "dog")  # by category id
    part = found.evaluation
    assert part.truths == "boxes"
    for i in range(len(part)):
        number = int(part.names[i].split("/")[-1][0])
        truth = part.truth(i)
        assert isinstance(truth, calibration.Boxes)
        assert truth.classes.tolist() == [1 - number % 2]
        np.testing.assert_allclose(truth.xyxy, [[number * 0.8, 1.6, (number + 10) * 0.8, 9.6]])


def test_boxes_follow_the_letterbox_and_the_crop(tmp_path: Path) -> None:
    root = coco(tmp_path / "d")
    (tmp_path / "l.toml").write_text("[resize]\nmode = 'letterbox'\n")
    (tmp_path / "c.toml").write_text("[resize]\nmode = 'shorter-side'\nshorter_side = 20\n")
    for name, scale, shift in (("l", 0.8, (0, 4)), ("c", 2.0, (-12, -2))):
        part = calibration.load(calibration.load_preset(str(tmp_path / f"{name}.toml")), RGB, data=root).evaluation
        number = int(part.names[0].split("/")[-1][0])
        truth = part.truth(0)
        assert isinstance(truth, calibration.Boxes)
        expected = np.array([[number, 1], [number + 10, 6]]) * scale + shift
        np.testing.assert_allclose(truth.xyxy, expected.reshape(1, 4))


def test_the_truth_is_part_of_the_digest(tmp_path: Path) -> None:
    before = calibration.load(raw(), RGB, data=coco(tmp_path / "d"))
    moved = [{"image_id": i, "category_id": 5, "bbox": [0, 0, 3, 3]} for i in range(4)]
    assert calibration.load(raw(), RGB, data=coco(tmp_path / "d", annotations=moved)).digest != before.digest


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"images": [{"id": 0, "file_name": "../../secret.png", "width": 1, "height": 1}]},
            "outside the folder|not listed",
        ),
        (
            {"images": [{"id": i, "file_name": f"no{i}.png", "width": 20, "height": 10} for i in range(4)]},
            "none of the 4",
        ),
        (
            {"images": [{"id": i, "file_name": f"{i}.png", "width": 9, "height": 9} for i in range(4)]},
            "annotated as 9 x 9",
        ),
        ({"annotations": [{"image_id": 9, "category_id": 5, "bbox": [0, 0, 1, 1]}]}, "images that are not listed"),
        ({"annotations": [{"image_id": 0, "category_id": 9, "bbox": [0, 0, 1, 1]}]}, "category 9"),
        ({"annotations": [{"image_id": 0, "category_id": 5, "bbox": [0, 0, 1]}]}, "not in COCO form"),
    ],
)
def test_faulty_annotations(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        calibration.load(raw(), RGB, data=coco(tmp_path / "d", **changes))


def test_a_file_name_never_leads_out_of_the_folder(tmp_path: Path) -> None:
    save(tmp_path / "secret.png", noise(0, 10, 20, 3))
    outside = [{"id": 0, "file_name": "../secret.png", "width": 20, "height": 10}]
    with pytest.raises(InputError, match="outside the folder"):
        calibration.load(raw(), RGB, data=coco(tmp_path / "d", images=outside, annotations=[]))


def test_other_json_beside_images_is_no_annotation(tmp_path: Path) -> None:
    root = folder(tmp_path / "data", {"a": 4, "b": 4})
    (root / "info.json").write_text('{"made": "by hand"}')
    (root / "list.json").write_text("[1, 2")
    assert calibration.load(raw(), RGB, data=root).evaluation.truths == "none"


def masks(root: Path, count: int = 6) -> Path:
    for i in range(count):
        save(root / "images" / f"{i}.jpg", noise(i, 8, 8, 3))
        mask = Image.fromarray((np.arange(64).reshape(8, 8) // 16 + i % 2).astype(np.uint8))
        if i % 2:
            mask.putpalette(noise(i, 768).tobytes())  # colours that have nothing to do with the indices
        (root / "masks").mkdir(exist_ok=True)
        mask.save(root / "masks" / f"{i}.png")
    return root


def test_masks_hold_indices_at_the_input_size(tmp_path: Path) -> None:
    part = calibration.load(raw(), RGB, data=masks(tmp_path / "d")).evaluation
    assert part.truths == "masks"
    for i in range(len(part)):
        number = int(Path(part.names[i]).stem)
        expected = np.repeat(np.repeat(np.arange(64).reshape(8, 8) // 16 + number % 2, 2, axis=0), 2, axis=1)
        np.testing.assert_array_equal(part.truth(i), expected)


def test_the_padding_of_a_letterbox_is_ignored_in_the_mask(tmp_path: Path) -> None:
    (tmp_path / "l.toml").write_text("[resize]\nmode = 'letterbox'\n[segmentation]\nignore = 200\n")
    inputs = spec(1, 3, 16, 32)
    part = calibration.load(
        calibration.load_preset(str(tmp_path / "l.toml")), inputs, data=masks(tmp_path / "d")
    ).evaluation
    mask = part.truth(0)
    assert isinstance(mask, np.ndarray)
    assert mask.shape == (16, 32)
    assert (mask[:, :8] == 200).all()
    assert (mask[:, 24:] == 200).all()
    assert (mask[:, 8:24] < 6).all()


def test_masks_that_are_missing_or_do_not_fit(tmp_path: Path) -> None:
    root = masks(tmp_path / "d")
    (root / "masks" / "3.png").unlink()
    with pytest.raises(InputError, match="no mask for 1 of 6 images: '3'"):
        calibration.load(raw(), RGB, data=root)
    save(root / "masks" / "3.png", noise(0, 8, 8, 3))
    with pytest.raises(InputError, match="one class index a pixel, but this one is RGB"):
        calibration.load(raw(), RGB, data=root)
    save(root / "masks" / "3.png", np.zeros((4, 8), np.uint8))
    with pytest.raises(InputError, match="its mask is 8 x 4"):
        calibration.load(raw(), RGB, data=root)


def test_a_resolved_preprocessing_is_all_that_an_app_needs(tmp_path: Path) -> None:
    """From the manifest's JSON alone, in plain NumPy and Pillow, the very same inputs."""
    root = folder(tmp_path / "data", {"a": 3, "b": 3}, size=40)
    found = calibration.load(calibration.load_preset("imagenet"), RGB, data=root)
    prep = json.loads(msgspec.json.encode(types.to_builtins(found.preprocessing)))
    image = Image.open(root / found.evaluation.names[0]).convert("RGB")
    side = prep["shorter_side"]
    image = image.resize((side, side), Image.Resampling[prep["filter"].upper()])
    left, top = round((side - prep["width"]) / 2), round((side - prep["height"]) / 2)
    crop = np.asarray(image.crop((left, top, left + prep["width"], top + prep["height"])), dtype=np.float32)
    x = crop * np.float32(prep["multiplier"]) + np.float32(prep["offset"])
    np.testing.assert_array_equal(found.evaluation[0]["x"], x.transpose(2, 0, 1)[None])
