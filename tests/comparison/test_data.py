"""Images: every format, the splits, the streams, the embedded sets, and every mistake a user can make."""

import json
import os
import random
import re
import struct
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import tiny
from regard.base.errors import UserError, install_images
from regard.comparison import data, draws, folders, preprocessing, storage


def picture(seed: int = 0, size: tuple[int, int] = (40, 32)) -> Image.Image:
    """A smooth colourful image, so that lossy formats and resampling change little."""
    colours = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC)


def fill(folder: Path, classes: tuple[str, ...] = ("cat", "dog"), each: int = 6) -> Path:
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            picture(100 * label + i).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture
def photos(tmp_path):
    return fill(tmp_path / "photos")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "data"


@pytest.fixture(scope="session")
def fashion(tmp_path_factory):
    return data.prepare("fashion", tmp_path_factory.mktemp("fashion"))


@pytest.fixture(scope="session")
def cluttered(tmp_path_factory):
    return data.prepare("cluttered", tmp_path_factory.mktemp("cluttered"))


def row(images: data.Images, file: str) -> np.ndarray:
    """One image as (S, S, C)."""
    return images.pixels[images.files.index(file)].transpose(1, 2, 0)


# ---- the embedded images


def test_fashion_is_the_first_training_and_all_test_images_of_fashion_mnist(fashion):
    assert fashion.pixels.shape == (20_000, 1, 28, 28)
    assert fashion.pixels.dtype == np.uint8
    assert isinstance(fashion.pixels, np.memmap)
    assert len(fashion.classes) == 10
    assert fashion.labels.dtype == np.int64
    # the published training labels begin with these
    assert fashion.labels[:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
    assert np.bincount(fashion.labels[:10_000]).tolist() == [942, 1027, 1016, 1019, 974, 989, 1021, 1022, 990, 1000]
    assert np.bincount(fashion.parts).tolist() == [10_000, 0, 10_000]
    assert np.bincount(fashion.labels[10_000:]).tolist() == [1000] * 10
    assert fashion.files[0] == "train/0"
    assert fashion.files[-1] == "test/9999"
    assert fashion.masks is None
    assert fashion.varies == "the validation part"
    (mean,), (deviation,) = preprocessing.normalisation(fashion, np.arange(10_000))
    assert mean == pytest.approx(0.2860, abs=0.005)  # of all 60,000 images, as everybody uses them
    assert deviation == pytest.approx(0.3530, abs=0.005)


def test_fashion_equals_the_published_files(fashion):
    source = Path("/usr/share/datasets/fashion-mnist")
    if not source.is_dir():
        pytest.skip("needs Debian's package dataset-fashion-mnist")
    import gzip

    published = np.frombuffer(gzip.decompress((source / "t10k-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    assert (fashion.pixels[10_000:].ravel() == published).all()


def test_cluttered_hides_an_item_among_pieces(fashion, cluttered):
    assert cluttered.pixels.shape == (20_000, 1, 56, 56)
    assert cluttered.masks.shape == (20_000, 56, 56)
    assert (cluttered.labels == fashion.labels).all()
    assert (cluttered.parts == fashion.parts).all()
    some = np.r_[9_900:10_100, 11_950:12_050]  # where the pieces come from other items
    pixels, masks = cluttered.pixels[some, 0], cluttered.masks[some]
    # the mask holds exactly the item's own pixels: the same values in the same order
    for canvas, mask, item in zip(pixels, masks, fashion.pixels[some, 0], strict=True):
        assert (canvas[mask] == item[item > 0]).all()
    assert pixels[masks].mean() > 4 * pixels[~masks].mean()
    # ten 9x9 pieces, most of them partly seen, and never more
    outside = (pixels * ~masks > 0).reshape(len(pixels), -1).sum(1)
    assert outside.max() <= 10 * 81
    assert 200 < outside.mean() < 600
    tops = masks.any(2).argmax(1)
    assert len(set(tops.tolist())) > 20


def test_the_embedded_images_never_change(fashion, cluttered):
    assert fashion.fingerprint == "96a31a5ff9f0885b9bfc8ba6ced5a6f2134fb39fed0535e932ff07dfb3163d9e"
    assert cluttered.fingerprint == "95f4bacbe2391fb159da9b0f36c94d28be6e2eb8962b8fa69fe06db0c72f2e3f"
    first = {"2a2c8e510ca67e5d46cb2de1d1e0ac062459095f35fa0ecf6defa3d18223781d": fashion,
             "9db31deb3d53587d60012c1c113b6f888d4f7748671f33486cfe80d32577c4c5": cluttered}  # fmt: skip
    for fingerprint, images in first.items():  # of the first 2,000 test images, which were all once
        old = [getattr(images, what)[:12_000] for what in ("pixels", "labels", "parts")]
        assert storage.fingerprint(images.classes, *old) == fingerprint


@pytest.fixture
def without_images(monkeypatch):
    monkeypatch.setitem(sys.modules, "regard_images", None)


@pytest.mark.parametrize("name", ["fashion", "cluttered"])
def test_images_that_are_not_installed_are_named_with_what_to_install(name, out, without_images):
    with pytest.raises(UserError, match=re.escape(f"regard-images, which is not installed: {install_images()}") + "$"):
        data.prepare(name, out)


def test_images_that_are_decoded_need_no_package(out, without_images, monkeypatch):
    with monkeypatch.context() as installed:
        installed.delitem(sys.modules, "regard_images")
        before = data.prepare("fashion", out)
    again = data.prepare("fashion", out)
    assert again.fingerprint == before.fingerprint
    with pytest.raises(UserError, match="regard-images"):
        data.prepare("fashion", out, size=32)
    assert data.load(out).fingerprint == before.fingerprint, "refused, and yet the old images are gone"


def test_embedded_images_can_be_resized(fashion, out):
    images = data.prepare("cluttered", out, size=32)
    assert images.pixels.shape == (20_000, 1, 32, 32)
    assert images.masks.shape == (20_000, 32, 32)
    inside, outside = (images.pixels[:300, 0][side].mean() for side in (images.masks[:300], ~images.masks[:300]))
    assert inside > 4 * outside
    again = data.prepare("fashion", out, size=32)  # the same folder for other images: nothing of the old ones is left
    assert again.masks is None
    assert again.name == "fashion"
    assert again.pixels[0].mean() == pytest.approx(fashion.pixels[0].mean(), rel=0.02)


# ---- a user's folder: what is read


def test_a_folder_of_class_folders(photos, out):
    images = data.prepare(photos, out, size=32)
    assert images.name == "photos"
    assert images.classes == ("cat", "dog")
    assert images.pixels.shape == (12, 3, 36, 36)
    assert images.labels.tolist() == [0] * 6 + [1] * 6
    assert images.parts.tolist() == [-1] * 12
    assert images.files[:2] == ("cat/0.png", "cat/1.png")
    assert images.broken == ()
    assert images.masks is None
    assert data.prepare(photos, out / "default").pixels.shape[-1] == 72
    with pytest.raises(ValueError, match="read-only"):
        images.pixels[0] = 0


def test_shorter_side_is_scaled_and_the_middle_cut_out(photos, out):
    wide = Image.new("RGB", (300, 100), "red")
    wide.paste("lime", (100, 0, 200, 100))  # the middle square
    wide.save(photos / "cat" / "wide.png")
    wide.transpose(Image.Transpose.ROTATE_90).save(photos / "cat" / "tall.png")
    images = data.prepare(photos, out, size=32)
    for name in ("wide", "tall"):
        assert (row(images, f"cat/{name}.png")[4:-4, 4:-4] == [0, 255, 0]).all()


def test_scaling_down_is_antialiased(photos, out):
    checks = (np.indices((512, 512)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(checks).save(photos / "cat" / "checks.png")
    small = row(data.prepare(photos, out, size=32), "cat/checks.png")
    assert np.abs(small.astype(int) - 127).max() < 8


FORMATS = "jpg jpeg JPG png PNG webp bmp gif tif tiff ppm jp2 tga avif"


@pytest.mark.parametrize("suffix", FORMATS.split())
def test_every_format(photos, out, suffix):
    picture(7, (64, 48)).save(photos / "cat" / f"x.{suffix}")
    picture(7, (64, 48)).save(photos / "cat" / "exact.png")
    images = data.prepare(photos, out, size=32)
    assert images.broken == ()
    difference = row(images, f"cat/x.{suffix}").astype(int) - row(images, "cat/exact.png")
    assert np.abs(difference).mean() < 6


def modes() -> dict[str, tuple[Image.Image, tuple[int, int, int]]]:
    """An image of one colour in each mode, and what it is as RGB."""
    palette = Image.new("P", (20, 20), 1)
    palette.putpalette([0, 0, 0, 200, 100, 50])
    clear = palette.copy()
    clear.info["transparency"] = 1
    return {
        "1.png": (Image.new("1", (20, 20), 1), (255, 255, 255)),
        "L.png": (Image.new("L", (20, 20), 90), (90, 90, 90)),
        "LA.png": (Image.new("LA", (20, 20), (0, 51)), (204, 204, 204)),
        "RGB.png": (Image.new("RGB", (20, 20), (10, 20, 30)), (10, 20, 30)),
        "RGBA.png": (Image.new("RGBA", (20, 20), (255, 0, 0, 51)), (255, 204, 204)),
        "RGBA.webp": (Image.new("RGBA", (20, 20), (255, 0, 0, 0)), (255, 255, 255)),
        "P.png": (palette, (200, 100, 50)),
        "P.gif": (palette, (200, 100, 50)),
        "P-clear.png": (clear, (255, 255, 255)),
        "P-clear.gif": (clear, (255, 255, 255)),
        "CMYK.tif": (Image.new("CMYK", (20, 20), (0, 255, 255, 0)), (255, 0, 0)),
        "CMYK.jpg": (Image.new("CMYK", (20, 20), (0, 255, 255, 0)), (255, 0, 0)),
        "YCbCr.tif": (Image.new("YCbCr", (20, 20), (100, 128, 128)), (100, 100, 100)),
    }


@pytest.mark.parametrize("file", modes())
def test_every_mode_becomes_rgb_over_white(photos, out, file):
    image, colour = modes()[file]
    options = {"transparency": image.info["transparency"]} if "transparency" in image.info else {}
    if file == "YCbCr.tif":
        options["compression"] = "tiff_lzw"  # Pillow before 13 cannot read it uncompressed
    image.save(photos / "cat" / file, **options)
    images = data.prepare(photos, out, size=32)
    assert images.broken == ()
    assert np.abs(row(images, f"cat/{file}").astype(int) - colour).max() <= 2


def test_the_first_frame_of_an_animation(photos, out):
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "lime")]
    for suffix in ("gif", "webp", "png", "tif"):
        frames[0].save(photos / "cat" / f"moving.{suffix}", save_all=True, append_images=frames[1:])
    images = data.prepare(photos, out, size=32)
    for suffix in ("gif", "webp", "png", "tif"):
        assert np.abs(row(images, f"cat/moving.{suffix}").astype(int) - [255, 0, 0]).max() < 8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(photos, out, orientation):
    upright = picture(3, (64, 64))
    stored = {  # how a camera held that way stores the upright scene
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    turned = upright.transpose(stored[orientation]) if orientation in stored else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned.save(photos / "cat" / "turned.jpg", exif=exif, quality=95)
    upright.save(photos / "cat" / "upright.png")
    images = data.prepare(photos, out, size=32)
    difference = row(images, "cat/turned.jpg").astype(int) - row(images, "cat/upright.png")
    assert np.abs(difference).mean() < 4


def test_a_damaged_exif_block_does_no_harm(photos, out, recwarn):
    picture(3).save(photos / "cat" / "x.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0")
    assert data.prepare(photos, out, size=32).broken == ()
    assert not recwarn.list


def test_a_twelve_bit_scan_is_not_black(photos, out):
    plain = data.prepare(photos, out / "plain").pixels[0]
    ramp = np.linspace(0, 4095, 72 * 72).reshape(72, 72).astype(np.uint16)
    Image.fromarray(ramp).save(photos / "cat" / "a.png")
    Image.fromarray(ramp).save(photos / "cat" / "b.tif")
    Image.fromarray(ramp // 2).save(photos / "dog" / "half.png")  # stays half as bright: one scale for the whole set
    Image.fromarray(ramp.astype(np.int32)).save(photos / "dog" / "long.tif")
    steps = []
    images = data.prepare(photos, out, progress=lambda *step: steps.append(step))
    expected = np.rint(ramp / 4095 * 255)
    for file in ("cat/a.png", "cat/b.tif", "dog/long.tif"):
        assert np.abs(row(images, file)[..., 0] - expected).max() <= 1
    assert np.abs(row(images, "dog/half.png")[..., 0] - expected / 2).max() <= 1
    assert (images.pixels[0] == plain).all()  # 8 bits stay as they are
    assert steps == [(done, 16) for done in range(1, 17)]


def test_sixteen_bits_use_their_whole_range(photos, out):
    Image.fromarray(np.full((20, 20), 65_535, np.uint16)).save(photos / "cat" / "white.png")
    Image.fromarray(np.full((20, 20), 4_095, np.uint16)).save(photos / "cat" / "dark.png")
    Image.fromarray(np.zeros((20, 20), np.uint16)).save(photos / "cat" / "black.png")
    images = data.prepare(photos, out, size=32)
    assert [int(row(images, f"cat/{name}.png").max()) for name in ("white", "dark", "black")] == [255, 16, 0]


def test_sixteen_bit_colour(photos, out):
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    line = b"\0" + struct.pack(">3H", 65_535, 32_768, 0) * 20
    header = struct.pack(">IIBBBBB", 20, 20, 16, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(line * 20)) + chunk(b"IEND", b"")
    (photos / "cat" / "deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    assert (row(data.prepare(photos, out, size=32), "cat/deep.png") == [255, 128, 0]).all()


def test_content_decides_not_the_extension(photos, out):
    picture().save(photos / "cat" / "x.png")
    (photos / "cat" / "x.png").rename(photos / "cat" / "x.jpg")
    assert data.prepare(photos, out, size=32).broken == ()


def test_what_is_no_image_is_ignored_and_links_are_followed(photos, out, tmp_path):
    for name in ("notes.txt", "labels.json", "Thumbs.db", ".DS_Store", "._0.png", ".hidden.jpg"):
        (photos / "cat" / name).write_bytes(b"no image")
    (photos / "cat" / ".git").mkdir()
    picture().save(photos / "cat" / ".git" / "x.png")
    (photos / "__MACOSX").mkdir()
    picture().save(photos / "loose.png")
    (photos / "cat" / "deep" / "deeper").mkdir(parents=True)
    picture(50).save(photos / "cat" / "deep" / "deeper" / "x.png")
    (photos / "cat" / "circle").symlink_to(photos, target_is_directory=True)
    elsewhere = fill(tmp_path / "elsewhere", ("owl",), each=5)
    (photos / "bird").symlink_to(elsewhere / "owl", target_is_directory=True)
    (photos / "dog" / "linked.png").symlink_to(elsewhere / "owl" / "0.png")
    images = data.prepare(photos, out, size=32)
    assert images.classes == ("bird", "cat", "dog")
    # each file counts once: neither the circle nor a second link brings one again
    assert len(images.files) == 5 + 7 + 6 + 1
    assert {"cat/deep/deeper/x.png", "bird/0.png", "cat/circle/loose.png"} < set(images.files)
    assert "dog/linked.png" not in images.files


def test_a_link_counts_where_the_file_lies(photos, out):
    whole = data.prepare(photos, out / "whole", size=32)
    for i in range(4):
        (photos / "cat" / f"again{i}.png").symlink_to(photos / "cat" / "0.png")
        (photos / "cat" / f"dog{i}.png").symlink_to(photos / "dog" / "0.png")
    (photos / "dog" / "hard.png").hardlink_to(photos / "dog" / "1.png")
    images = data.prepare(photos, out, size=32)
    assert (images.files, images.fingerprint) == (whole.files, whole.fingerprint)


def test_names_are_kept_as_text(tmp_path, out):
    names = ("<script>alert(1)", "a b\nc", "Äpfel 🍏", '"&amp;\\')
    images = data.prepare(fill(tmp_path / "photos <b>", names, each=5), out, size=32)
    assert images.classes == tuple(sorted(names))
    assert images.name == "photos <b>"
    assert f"{sorted(names)[0]}/0.png" in images.files


def test_names_that_are_no_unicode(tmp_path, out):
    folder = fill(tmp_path / "photos")
    try:
        (folder / "dog").rename(folder / os.fsdecode(b"d\xf6g"))
    except OSError:
        pytest.skip("this file system knows only Unicode")
    images = data.prepare(folder, out, size=32)
    assert images.classes == ("cat", "d�g")
    assert "\n".join(images.files).encode()


def test_real_photographs_in_mixed_formats(tmp_path, out):
    foolbox = pytest.importorskip("foolbox")
    found = sorted((Path(foolbox.__file__).parent / "data").glob("imagenet_*.jpg"))
    assert len(found) == 20
    suffixes = ["jpg", "png", "webp", "tiff", "bmp"]
    for i, path in enumerate(found):
        target = tmp_path / "photos" / ("low" if i % 2 else "high") / f"{path.stem}.{suffixes[i % 5]}"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).convert("RGB").save(target)
    images = data.prepare(tmp_path / "photos", out, size=64)
    assert images.pixels.shape == (20, 3, 72, 72)
    assert images.broken == ()
    for i, path in enumerate(found):  # large JPEGs decode at a reduced scale: nobody could tell
        fitted = ImageOps.fit(Image.open(path).convert("RGB"), (72, 72), Image.Resampling.LANCZOS)
        stored = row(images, f"{'low' if i % 2 else 'high'}/{path.stem}.{suffixes[i % 5]}")
        assert np.abs(stored.astype(int) - np.asarray(fitted)).mean() < 4
    mean, deviation = preprocessing.normalisation(images, np.arange(20))
    assert mean == pytest.approx((0.485, 0.456, 0.406), abs=0.12)  # of ImageNet, as everybody uses them
    assert deviation == pytest.approx((0.229, 0.224, 0.225), abs=0.08)


# ---- a user's folder: what is broken


def spoil(folder: Path) -> dict[str, str]:
    """Files that cannot be read, and a word of the reason."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for suffix in ("jpg", "png", "webp", "bmp", "gif", "tif"):
        path = folder / "cat" / f"cut.{suffix}"
        noise.save(path)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.8)])
    (folder / "cat" / "zero.jpg").touch()
    (folder / "cat" / "text.png").write_text("I am no image")
    (folder / "cat" / "gone.png").symlink_to(folder / "nowhere.png")
    Image.new("F", (20, 20), 0.5).save(folder / "cat" / "float.tif")
    Image.fromarray(np.full((20, 20), -5, np.int32)).save(folder / "cat" / "signed.tif")
    (folder / "cat" / "bomb.ppm").write_bytes(b"P6 40000 40000 255\n" + bytes(99))
    return {
        "cut.jpg": "truncated",
        "cut.png": "truncated",
        "cut.webp": "decoder",
        "cut.bmp": "truncated",
        "cut.gif": "truncated",
        "cut.tif": "truncated",
        "zero.jpg": "empty",
        "text.png": "no image that Pillow can read",
        "gone.png": "No such file",
        "float.tif": "floating point",
        "signed.tif": "negative",
        "bomb.ppm": "more than 179 megapixels",
    }


def test_broken_files_stop_everything_or_are_left_out(photos, out):
    whole = data.prepare(photos, out / "whole", size=32)
    expected = spoil(photos)
    with pytest.raises(UserError, match=r"^12 of 24 images cannot be read: .* and 7 more; .*skip_broken=True") as error:
        data.prepare(photos, out, size=32)
    assert "'cat/bomb.ppm' (it has more than 179 megapixels)" in str(error.value)
    images = data.prepare(photos, out, size=32, skip_broken=True)
    reasons = dict(images.broken)
    assert sorted(reasons) == sorted(f"cat/{file}" for file in expected)
    for file, word in expected.items():
        assert word in reasons[f"cat/{file}"]
    # what is left is as if the broken ones had never been there
    assert images.files == whole.files
    assert images.fingerprint == whole.fingerprint
    assert (np.load(out / "images.npy") == whole.pixels).all()
    with pytest.raises(UserError, match="skip_broken=True"):  # also when the folder is prepared already
        data.prepare(photos, out, size=32)


def test_too_few_are_left_without_the_broken_ones(photos, out):
    for i in range(2):
        (photos / "dog" / f"{i}.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"'dog' has 4 \(2 broken"):
        data.prepare(photos, out, skip_broken=True)


def test_nothing_readable_at_all(photos, out):
    for path in photos.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="12 of 12 images cannot be read"):
        data.prepare(photos, out, skip_broken=True)
    assert [path.name for path in out.iterdir()] in ([".lock"], [])


# ---- a user's folder: how it may be laid out


def test_train_and_val_folders(tmp_path, out):
    fill(tmp_path / "p" / "Train", each=10)
    fill(tmp_path / "p" / "val", each=3)
    (tmp_path / "p" / "annotations").mkdir()
    images = data.prepare(tmp_path / "p", out, size=32)
    assert images.varies == "the validation part"
    assert np.bincount(images.parts).tolist() == [20, 0, 6]
    split = images.split(0)
    assert [len(part) for part in split] == [18, 2, 6]
    assert {images.files[i].split("/")[0] for i in split.test} == {"val"}
    assert {images.files[i].split("/")[0] for i in split.val} == {"Train"}
    assert (split.test == images.split(1).test).all()


def test_train_and_test_folders(tmp_path, out):
    fill(tmp_path / "p" / "train", each=10)
    fill(tmp_path / "p" / "test", each=3)
    images = data.prepare(tmp_path / "p", out, size=32)
    assert {images.files[i].split("/")[0] for i in images.split(0).test} == {"test"}
    assert images.varies == "the validation part"


@pytest.mark.parametrize("middle", ["val", "valid", "validation"])
def test_all_parts_given(tmp_path, out, middle):
    for part, each in {"train": 4, middle: 2, "test": 1}.items():
        fill(tmp_path / "p" / part, each=each)
    images = data.prepare(tmp_path / "p", out, size=32)
    assert images.varies == "nothing"
    for seed in (0, 1):
        split = images.split(seed)
        assert [{images.files[i].split("/")[0] for i in part} for part in split] == [{"train"}, {middle}, {"test"}]


def test_train_alone_is_split_by_the_seed(tmp_path, out):
    fill(tmp_path / "p" / "train")
    images = data.prepare(tmp_path / "p", out, size=32)
    assert images.classes == ("cat", "dog")
    assert images.varies == "the whole split"


def test_a_class_may_be_called_train(tmp_path, out):
    images = data.prepare(fill(tmp_path / "p", ("bus", "train", "car")), out, size=32)
    assert images.classes == ("bus", "car", "train")


def mistakes():
    """name -> (what to do to a good folder, what the sentence says)."""

    def single(p):
        for path in (p / "dog").iterdir():
            path.unlink()
        (p / "dog").rmdir()

    def loose(p):
        single(p)
        for path in (p / "cat").iterdir():
            path.rename(p / path.name)
        (p / "cat").rmdir()

    def nothing(p):
        for path in p.rglob("*.png"):
            path.unlink()

    def parts(*names, **more):
        def change(p):
            for name in ("cat", "dog"):
                (p / name).rename(p.parent / name)
            for name in names:
                fill(p / name)
            for name, classes in more.items():
                fill(p / name, classes)

        return change

    def empty_in_val(p):
        parts("train", "val")(p)
        for path in (p / "val" / "dog").iterdir():
            path.unlink()

    def loose_test(p):
        parts("train", "val")(p)
        (p / "test").mkdir()
        picture().save(p / "test" / "0001.png")

    def one_short(p):
        for i in (4, 5):
            (p / "dog" / f"{i}.png").unlink()

    def one_to_train(p):
        parts("train", "val")(p)
        for i in range(1, 6):
            (p / "train" / "cat" / f"{i}.png").unlink()

    return {
        "no images": (nothing, "holds no images"),
        "loose": (loose, "lie directly in"),
        "loose in a part": (loose_test, "lie directly in .*test"),
        "single class": (single, "single class, 'cat'"),
        "empty class": (lambda p: (p / "owl").mkdir(), "no images in the class folder 'owl'"),
        "empty class in a part": (empty_in_val, "no images in the class folder 'val/dog'"),
        "only in train": (parts(train=("cat", "dog", "owl"), val=("cat", "dog")), "'val' has no folder 'owl'"),
        "only in val": (parts(train=("cat", "dog"), val=("cat", "dog", "owl")), "'train' has no folder 'owl'"),
        "no train": (parts("val", "test"), "'test' and 'val' but no 'train'"),
        "val twice": (parts("train", "val", "valid"), "two of them for the same part"),
        "class beside parts": (lambda p: fill(p, ("train", "val")), "beside them images in 'cat', 'dog'"),
        "too few": (one_short, "at least 5 images of each class, but 'dog' has 4"),
        "too few to train": (one_to_train, "at least 2 images of each class in the training part, but 'cat' has 1"),
    }


@pytest.mark.parametrize("name", mistakes())
def test_a_folder_that_makes_no_fair_split(photos, out, name):
    change, sentence = mistakes()[name]
    change(photos)
    with pytest.raises(UserError, match=sentence) as error:
        data.prepare(photos, out)
    assert "\n" not in str(error.value)
    assert not (out / "meta.json").exists()


def test_sources_that_do_not_exist(tmp_path, out):
    (tmp_path / "file.png").touch()
    with pytest.raises(UserError, match="is a file"):
        data.prepare(tmp_path / "file.png", out)
    with pytest.raises(UserError, match="does not exist"):
        data.prepare(str(tmp_path / "nowhere"), out)
    with pytest.raises(UserError, match="did you mean 'fashion'"):
        data.prepare("fasion", out)
    with pytest.raises(UserError, match="one of fashion, cluttered"):
        data.prepare("xyzzy", out)


def test_results_do_not_go_among_the_images(photos):
    with pytest.raises(UserError, match="outside"):
        data.prepare(photos, photos / "runs" / "data")
    assert not (photos / "runs").exists()


def test_a_size_that_is_none(photos, out):
    with pytest.raises(UserError, match="at least 8, got 0"):
        data.prepare(photos, out, size=0)


def test_a_full_disk_is_noticed_beforehand(photos, out, monkeypatch):
    monkeypatch.setattr(data.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    with pytest.raises(UserError, match="make room"):
        data.prepare(photos, out)


# ---- what lies on the disk


def test_a_whole_folder_is_not_decoded_again(photos, out, monkeypatch):
    first = data.prepare(photos, out, size=32)
    decoded = []
    decode = folders._decode
    monkeypatch.setattr(folders, "_decode", lambda *args: decoded.append(args) or decode(*args))
    assert data.prepare(photos, out, size=32).fingerprint == first.fingerprint
    assert not decoded
    os.utime(photos / "cat" / "0.png", (1, 1))
    data.prepare(photos, out, size=32)
    assert len(decoded) == 12
    data.prepare(photos, out, size=40)
    assert len(decoded) == 24
    (photos / "cat" / "0.png").unlink()
    assert len(data.prepare(photos, out, size=40).files) == 11


def test_a_folder_without_meta_is_prepared_again(photos, out):
    first = data.prepare(photos, out, size=32)
    (out / "meta.json").unlink()
    (out / "images.npy").write_bytes(b"half an imag")
    (out / ".images.npy.killed").write_bytes(b"left by a process that was killed")
    with pytest.raises(UserError, match=r"no meta\.json"):
        data.load(out)
    again = data.prepare(photos, out, size=32)
    assert again.fingerprint == first.fingerprint
    left = sorted(path.name for path in out.iterdir() if path.name != ".lock")
    assert left == ["images.npy", "labels.npy", "meta.json", "parts.npy"]


def test_killed_while_decoding(photos, out):
    data.prepare(photos, out, size=32)

    def stop(*step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        data.prepare(photos, out, size=40, progress=stop)
    with pytest.raises(UserError, match=r"no meta\.json"):  # neither the old images nor half of the new ones
        data.load(out)
    assert data.prepare(photos, out, size=40).pixels.shape[-1] == 45


def test_one_at_a_time(photos, out, monkeypatch):
    decoded = []
    decode = folders._decode

    def slowly(*args):
        time.sleep(0.02)
        decoded.append(args)
        return decode(*args)

    monkeypatch.setattr(folders, "_decode", slowly)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: data.prepare(photos, out, size=32), range(2))
    assert first.fingerprint == second.fingerprint
    assert len(decoded) == 12


def test_load_gives_what_prepare_gave(photos, out):
    prepared, loaded = data.prepare(photos, out, size=32), data.load(out)
    assert (prepared.pixels == loaded.pixels).all()
    assert prepared.files == loaded.files
    meta = json.loads((out / "meta.json").read_text())
    assert meta["fingerprint"] == loaded.fingerprint
    assert meta["classes"] == ["cat", "dog"]


def test_the_fingerprint_follows_what_was_decoded(photos, out):
    first = data.prepare(photos, out / "1", size=32).fingerprint
    os.utime(photos / "cat" / "0.png", (1, 1))
    assert data.prepare(photos, out / "2", size=32).fingerprint == first
    picture(77).save(photos / "cat" / "0.png")
    assert data.prepare(photos, out / "3", size=32).fingerprint != first
    picture(0).save(photos / "cat" / "0.png")
    (photos / "dog").rename(photos / "fox")
    assert data.prepare(photos, out / "4", size=32).fingerprint != first


# ---- splits


def synthetic(counts: list[int], parts: np.ndarray | None = None) -> data.Images:
    labels = np.repeat(np.arange(len(counts)), counts)
    np.random.default_rng(0).shuffle(labels)
    parts = np.full(len(labels), -1, np.int8) if parts is None else parts
    names = tuple(map(str, range(len(counts))))
    return data.Images("x", names, np.zeros((len(labels), 1, 8, 8), np.uint8), labels, parts, (), None, (), "")


@pytest.mark.parametrize("seed", range(5))
def test_the_whole_split(seed):
    images = synthetic([100, 37, 5, 10])
    split = images.split(seed)
    assert sorted(np.concatenate(split).tolist()) == list(range(152))  # every image once
    assert np.bincount(images.labels[split.train]).tolist() == [70, 26, 3, 7]
    assert np.bincount(images.labels[split.val]).tolist() == [10, 4, 1, 1]
    assert np.bincount(images.labels[split.test]).tolist() == [20, 7, 1, 2]
    for part in split:
        assert (np.diff(part) > 0).all()


def test_the_seed_decides_the_split_and_nothing_else_does():
    images = synthetic([100, 50])
    first, again, other = images.split(3), images.split(3), images.split(4)
    for a, b, c in zip(first, again, other, strict=True):
        assert (a == b).all()
        assert a.tolist() != c.tolist()
    assert (images.split(np.int64(3)).test == first.test).all()


def test_fashion_keeps_its_test_images_and_varies_the_validation(fashion):
    a, b = fashion.split(0), fashion.split(1)
    assert (a.test == np.arange(10_000, 20_000)).all()
    assert (b.test == a.test).all()
    assert a.val.tolist() != b.val.tolist()
    assert sorted([*a.train, *a.val]) == list(range(10_000))
    share = np.bincount(fashion.labels[a.val]) / np.bincount(fashion.labels[:10_000])
    assert share == pytest.approx(0.1, abs=0.001)


# ---- what training takes


def test_normalisation_is_numpys(photos, out):
    images = data.prepare(photos, out, size=32)
    mean, deviation = preprocessing.normalisation(images, np.array([0, 3, 7]))
    chosen = images.pixels[[0, 3, 7]] / 255
    assert mean == pytest.approx(chosen.mean((0, 2, 3)))
    assert deviation == pytest.approx(chosen.std((0, 2, 3)))
    assert preprocessing.normalisation(synthetic([5, 5]), np.arange(10)) == ((0.0,), (1 / 255,))


def test_augment_crops_and_flips():
    # each pixel tells where it was
    rows, columns = np.indices((36, 36))
    pixels = torch.from_numpy(np.stack([rows, columns]).astype(np.uint8)).repeat(400, 1, 1, 1)
    out = preprocessing.augment(pixels, 32, draws.stream(0, 0, "augment")).mul(255).round().int()
    assert out.shape == (400, 2, 32, 32)
    corners = out[:, :, 0, 0]
    mirrored = out[:, 1, 0, 0] > out[:, 1, 0, 1]
    assert 150 < mirrored.sum() < 250
    assert set(corners[:, 0].tolist()) == set(range(5))  # 36 - 32 = 4 places to move, both ways
    assert set(corners[~mirrored, 1].tolist()) == set(range(5))
    assert set(corners[mirrored, 1].tolist()) == set(range(31, 36))
    # and what comes out is one solid crop
    span = torch.arange(32)
    assert (out[:, 0] == corners[:, 0, None, None] + span[:, None]).all()
    assert (out[:, 1] == corners[:, 1, None, None] + torch.where(mirrored[:, None, None], -span, span)).all()


def test_augment_pads_where_there_is_no_room():
    out = preprocessing.augment(torch.full((200, 1, 28, 28), 255, dtype=torch.uint8), 28, draws.stream(0, 0, "augment"))
    assert out.shape == (200, 1, 28, 28)
    assert out.unique().tolist() == [0.0, 1.0]
    black_rows = (out[:, 0].amax(2) == 0).sum(1)
    assert set(black_rows.tolist()) == {0, 1}  # 28 // 28 = 1


def test_augment_and_centre_keep_values():
    pixels = torch.randint(0, 256, (4, 3, 9, 9), dtype=torch.uint8)
    whole = preprocessing.centre(pixels, 9)
    assert whole.dtype == torch.float32
    assert (whole == pixels / 255).all()
    assert (preprocessing.centre(pixels, 5) == pixels[:, :, 2:7, 2:7] / 255).all()
    cut = preprocessing.augment(pixels, 8, draws.stream(0, 0, "augment"))
    assert {round(v * 255) for v in cut.flatten().tolist()} <= set(pixels.flatten().tolist())


def test_the_same_stream_for_every_arm():
    pixels = torch.randint(0, 256, (64, 3, 36, 36), dtype=torch.uint8)
    first = preprocessing.augment(pixels, 32, draws.stream(5, 2, "augment"))
    torch.manual_seed(123)  # what an arm does with the global generator changes nothing
    torch.rand(7)
    assert (preprocessing.augment(pixels, 32, draws.stream(5, 2, "augment")) == first).all()
    for other in (draws.stream(6, 2, "augment"), draws.stream(5, 3, "augment"), draws.stream(5, 2, "mix")):
        assert (preprocessing.augment(pixels, 32, other) != first).any()


def test_the_crops_of_a_seed_never_change():
    """A comparison begun with one version goes on with the next: corners and their right neighbours."""
    pixels = torch.arange(36, dtype=torch.uint8).view(1, 1, 6, 6).repeat(6, 1, 1, 1)
    out = preprocessing.augment(pixels, 3, draws.stream(0, 0, "augmentation")).mul(255).round().int()
    assert out[:, 0, 0, :2].tolist() == [[14, 15], [2, 1], [3, 4], [5, 4], [20, 19], [21, 22]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_augment_is_the_same_on_a_gpu():
    pixels = torch.randint(0, 256, (64, 3, 36, 36), dtype=torch.uint8)
    here, there = (preprocessing.augment(pixels, 32, draws.stream(0, 0, "augment"), d) for d in ("cpu", "cuda"))
    assert (here == there.cpu()).all()


def test_order_is_a_pure_function():
    index = np.array([5, 8, 13, 21, 34, 55, 89])
    first = draws.order(index, 1, 2)
    assert sorted(first) == index.tolist()
    np.random.seed(9)  # noqa: NPY002
    random.seed(9)
    assert (draws.order(index, 1, 2) == first).all()
    orders = {tuple(draws.order(index, seed, epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_order_and_stream_never_change():
    """A comparison begun with one version goes on with the next."""
    assert draws.order(np.arange(8), 0, 0).tolist() == [6, 2, 3, 4, 7, 1, 5, 0]
    assert draws.stream(0, 0, "augment").initial_seed() == 596923542818953686


def test_a_broken_file_is_told_before_others_are_decoded_again(tmp_path, monkeypatch):
    photos = tiny.fill(tmp_path / "photos")
    for path in sorted(photos.rglob("*.png"))[::2]:
        Image.fromarray(np.full((18, 18), 4000, np.uint16)).save(path)
    (photos / "dark" / "000.png").write_bytes(b"no picture")
    decoded = []
    decode = folders._decode
    monkeypatch.setattr(folders, "_decode", lambda path, *rest: decoded.append(path) or decode(path, *rest))
    with pytest.raises(UserError, match=r"000\.png"):
        data.prepare(photos, tmp_path / "out")
    assert len(decoded) == len(set(decoded)) == 20
    assert len(data.prepare(photos, tmp_path / "out", skip_broken=True).labels) == 19
