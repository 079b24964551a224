"""Does any attention look at the object more than Grad-CAM on the plain network does? Write docs/stamps.md.

Usage: python benchmarks/stamps.py [--quick] [--page] [--seeds N]

Objects cut out by hand (the stamps of Tux Paint, from Debian's package; GPL-2, so nothing of it is kept here) are laid
on photographs among pieces of other objects. `regard.compare` trains a network with ImageNet weights on them, without
and with attention, and what its maps show is held against where the object is. What is done already lies in runs/stamps
and is not done again. Two cores need about an hour.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import regard
from regard.base.files import slug, whole, write_text
from regard.comparison import data, preprocessing, statistics
from regard.comparison.results import Comparison
from regard.comparison.wording import interval, points
from regard.gallery.opening import open_subject
from regard.maps.figures import FIGURES
from regard.maps.meaning import edge_strength, judge
from regard.maps.views import joined_axes
from regard.networks.replica import borrowed

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "examples"))  # the verdicts' table, and the network's ImageNet weights
RUNS = Path("runs", "stamps")  # relative, so that the folder may be carried to another checkout
RESULTS = ROOT / "benchmarks" / "results" / "stamps.json"
PAGE = ROOT / "docs" / "stamps.md"

PACKAGE = "tuxpaint-stamps-default"
CLASSES = {
    "bird": "animals/birds", "insect": "animals/insects", "mammal": "animals/mammals", "clothes": "clothes",
    "food": "food", "household": "household", "money": "symbols/money", "plant": "plants", "house": "town/houses",
    "vehicle": "vehicles",
}  # fmt: skip
# of scikit-image's package, those that show nothing of these classes
PHOTOS = (
    "brick.png", "camera.png", "cell.png", "clock_motion.png", "grass.png", "gravel.png", "hubble_deep_field.jpg",
    "ihc.png", "moon.png", "page.png", "retina.jpg", "text.png",
)  # fmt: skip
LEAST = 64  # pixels: a stamp's longer side
TESTED = 0.25  # of a class's stamps
SMALLEST, LARGEST = 0.25, 0.5  # an object's longer side, of the picture's
PIECES = 8

ARMS = ("se", "cbam", "non_local")
SIZE, FINE = 128, 16  # pixels of a picture, and of a place of the finer maps; of the last ones there are twice as many
SEEDS = 7  # with fewer no verdict on three arms is possible
TRAINING, TEST = 220, 50  # pictures of a class
EPOCHS, BATCH, RATE = 2, 16, 1e-3
START = "paper"  # gates that start as the identity open by a few hundredths in so few steps: all would be flat
FINER = "blocks.4"  # the last layer of maps with places of FINE pixels
SCORES = ("pointing", "energy", "lifted")
MAPS = ("Grad-CAM", "own map")

Result = dict[str, Any]


# --- the stamps ------------------------------------------------------------------------------------------------------


def fetch(folder: Path) -> Path:
    """The package's stamps, downloaded and unpacked into a folder once; nothing is installed."""
    stamps = folder / "usr" / "share" / "tuxpaint" / "stamps"
    if not stamps.is_dir():
        if not (shutil.which("apt-get") and shutil.which("dpkg")):
            raise SystemExit(f"there is no apt here: unpack Debian's package {PACKAGE} into {folder.resolve()}")
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", PACKAGE], cwd=folder, check=True)
        (packed,) = folder.glob("*.deb")
        subprocess.run(["dpkg", "-x", packed.name, "."], cwd=folder, check=True)
        packed.unlink()
    return stamps


def cut_out(path: Path) -> Image.Image | None:
    """A stamp as RGBA, without the empty rim; None where it is small, or no object that something can be around."""
    with Image.open(path) as opened:
        stamp = opened.convert("RGBA")
    solid = stamp.getchannel("A").point(lambda alpha: 255 * (alpha > 127))
    box = solid.getbbox()
    if box is None or solid.getextrema()[0] > 0:
        return None
    stamp, solid = stamp.crop(box), solid.crop(box)
    if max(stamp.size) < LEAST or np.asarray(solid).mean() > 0.97 * 255:
        return None
    stamp.thumbnail((2 * SIZE, 2 * SIZE))
    return stamp


def read(folder: Path) -> dict[str, list[tuple[str, Image.Image]]]:
    """Class -> name and picture of its stamps; of those that come mirrored as well, one."""
    found: dict[str, list[tuple[str, Image.Image]]] = {}
    for name, inside in CLASSES.items():
        paths = [
            path for path in sorted((folder / inside).rglob("*.png")) if not path.stem.endswith(("mirror", "flip"))
        ]
        found[name] = [(path.stem, stamp) for path in paths if (stamp := cut_out(path)) is not None]
    return found


def photos() -> list[Image.Image]:
    package = find_spec("skimage")
    if package is None or package.origin is None:
        raise SystemExit("the backgrounds are photos from scikit-image: pip install scikit-image")
    return [Image.open(Path(package.origin).parent / "data" / name).convert("RGB") for name in PHOTOS]


# --- the pictures ----------------------------------------------------------------------------------------------------


def background(random: np.random.Generator, photo: Image.Image, side: int) -> Image.Image:
    """A square of a photo from a random place, its channels dimmed at random: most photos are grey."""
    edge = int(random.integers(min(side, *photo.size), min(photo.size) + 1))
    left, top = (int(random.integers(room - edge + 1)) for room in photo.size)
    square = photo.resize((side, side), Image.Resampling.LANCZOS, box=(left, top, left + edge, top + edge))
    return Image.fromarray((np.asarray(square) * random.uniform(0.5, 1, 3)).astype(np.uint8))


def scaled(stamp: Image.Image, longer: float) -> Image.Image:
    width, height = (max(1, round(longer * side / max(stamp.size))) for side in stamp.size)
    return stamp.resize((width, height), Image.Resampling.LANCZOS)


def compose(
    random: np.random.Generator,
    stamp: Image.Image,
    others: list[Image.Image],
    photo: Image.Image,
    size: int = SIZE,
    rim: int = 0,
) -> tuple[Image.Image, np.ndarray]:
    """One object on a photo, above pieces of others.

    Args:
        random: what everything is drawn from.
        stamp: the object, RGBA.
        others: what the pieces are cut from, RGBA.
        photo: the background.
        size: side of the square the object lies in, in pixels.
        rim: pixels around that square.

    Returns:
        The picture and its mask, true on the object, bool; both with a side of ``size + 2 * rim``.
    """
    side = size + 2 * rim
    picture = background(random, photo, side)
    piece = size // 6
    for _ in range(PIECES):
        other = scaled(others[random.integers(len(others))], LARGEST * size)
        left, top = (int(random.integers(max(1, edge - piece + 1))) for edge in other.size)
        other = other.crop((left, top, min(left + piece, other.width), min(top + piece, other.height)))
        picture.paste(other, tuple(random.integers(side - piece + 1, size=2).tolist()), other)
    item = scaled(stamp, random.uniform(SMALLEST, LARGEST) * size)
    place = tuple(int(rim + random.integers(size - edge + 1)) for edge in item.size)
    picture.paste(item, place, item)
    mask = Image.new("L", (side, side))
    mask.paste(item.getchannel("A"), place)
    return picture, np.asarray(mask) > 127


def write_pictures(folder: Path, package: Path, counts: dict[str, int], size: int) -> Path:
    """A folder of pictures as `regard.compare` takes it, test objects apart from training objects; made once.

    Beside it, counts.json says how many stamps there were, and masks.npz where each object is.
    """
    pictures = folder / "pictures"
    if (folder / "counts.json").is_file():  # written last
        return pictures
    stamps, grounds = read(fetch(package)), photos()
    rim = (math.ceil(size * data.ROOM) - size) // 2  # of which training cuts its crops
    masks, said = {}, {}
    parted: dict[str, dict[str, list[tuple[str, Image.Image]]]] = {"train": {}, "test": {}}
    for number, (name, found) in enumerate(stamps.items()):
        shuffled = [found[i] for i in np.random.default_rng([0, number]).permutation(len(found))]
        cut = round(TESTED * len(found))
        parted["test"][name], parted["train"][name] = shuffled[:cut], shuffled[cut:]
        said[name] = [len(found) - cut, cut]
    for part, chosen in parted.items():
        for number, (name, own) in enumerate(chosen.items()):
            others = [stamp for other, found in chosen.items() if other != name for _, stamp in found]
            (pictures / part / name).mkdir(parents=True, exist_ok=True)
            for count in range(counts[part]):
                random = np.random.default_rng([part == "test", number, count])
                stem, stamp = own[count % len(own)]
                picture, mask = compose(random, stamp, others, grounds[random.integers(len(grounds))], size, rim)
                file = f"{part}/{name}/{count:03d}-{slug(stem)}.jpg"
                picture.save(pictures / file, quality=95)
                masks[file] = mask
    with whole(folder / "masks.npz") as path, path.open("wb") as file_:
        np.savez_compressed(file_, **masks)
    write_text(folder / "counts.json", json.dumps(said))
    return pictures


def prepare(folder: Path, size: int) -> data.Images:
    """The pictures decoded where `regard.compare` looks for them, with their masks, which its report shows too."""
    images = data.prepare(folder / "pictures", folder / "data", size=size)
    if images.masks is None:
        with np.load(folder / "masks.npz") as stored:
            masks = np.stack([stored[name] for name in images.files])
        with whole(folder / "data" / "masks.npy") as path, path.open("wb") as file:
            np.save(file, masks)
        images = data.load(folder / "data")
    return images


# --- what the maps show ----------------------------------------------------------------------------------------------


def score(maps: Any, images: Any, masks: Any) -> dict[str, float]:
    """How much of the maps (K, h, w) is on the objects.

    `lifted` is the energy of what is above a map's lowest value: a gate that lets everything through, and the object a
    little more, has hardly more energy there than chance.
    """
    values = np.asarray(maps, np.float64)
    meaning = judge(values, images, masks=masks)
    lifted = judge(values - values.min((1, 2), keepdims=True), masks=masks).on_object
    return {
        "pointing": meaning.pointing, "energy": meaning.on_object, "lifted": lifted, "spread": meaning.spread,
        "edges": meaning.edges, "places": values.shape[1],
    }  # fmt: skip


def own_maps(model: nn.Module, x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Name and values (B, h, w) of every map of places in the order of the calls; of weights between places, how much
    each is looked at by all."""
    with (
        torch.inference_mode(),
        borrowed(model),
        regard.record(model, kinds=("spatial", "axis", "element", "position")) as maps,
    ):
        model(x)
    for found in joined_axes(maps):
        yield found.name, found.value.float().flatten(1, -3).mean(1)


def chosen_maps(model: nn.Module, x: Tensor, finer: str) -> dict[str, Tensor]:
    """Grad-CAM for the class that each picture is taken for, and the last map of the attention; both of them also at
    the last place of the finer resolution."""
    fine = x.shape[-1] // FINE
    own = [values for _, values in own_maps(model, x)]
    found = {
        "Grad-CAM": regard.explain(model, x).value[:, 0],
        "Grad-CAM, finer": regard.explain(model, x, layer=finer).value[:, 0],
    }
    if own:
        found["own map"] = own[-1]
    if finer_own := [values for values in own if values.shape[1] == fine]:
        found["own map, finer"] = finer_own[-1]
    return found


def test_pictures(folder: Path, size: int) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Pixels (K, 3, size, size) in 0..1, masks (K, size, size) and labels of the test pictures."""
    images = data.load(folder / "data")
    chosen = images.split(0).test
    pixels, masks = (
        preprocessing.centre(torch.from_numpy(np.asarray(of[chosen])), size)
        for of in (images.pixels, images.masks[:, None])
    )
    return pixels, (255 * masks[:, 0]).numpy() > 0, images.labels[chosen]


def look(folder: Path, arm: str, seed: int) -> Result:
    """What the maps of one trained network show, kept in the folder."""
    path = folder / "scores" / slug(arm) / f"seed-{seed:04d}.json"
    if path.is_file():
        return json.loads(path.read_text())
    subject = open_subject(str(folder / "weights" / slug(arm) / f"seed-{seed:04d}.safetensors"))
    subject.model.eval()
    pixels, masks, labels = test_pictures(folder, subject.size[0])
    shift, scale = (torch.tensor(values).view(-1, 1, 1) for values in (subject.mean, subject.deviation))
    batches = [((part - shift) / scale).contiguous(memory_format=torch.channels_last) for part in pixels.split(50)]
    with torch.inference_mode():
        right = torch.cat([subject.model(part).argmax(1) for part in batches]).numpy() == labels
    parts = [chosen_maps(subject.model, part, FINER) for part in batches]
    result: Result = {"top1": float(right.mean())}
    result |= {name: score(torch.cat([part[name] for part in parts]), pixels, masks) for name in parts[0]}
    write_text(path, json.dumps(result, indent=1))
    return result


def baselines(pixels: Tensor, masks: np.ndarray) -> list[tuple[str, dict[str, float]]]:
    """What needs no network, at both resolutions: random values, a bell in the middle, the strength of the edges."""
    found = []
    for places in (pixels.shape[-1] // (2 * FINE), pixels.shape[-1] // FINE):
        shape = len(pixels), places, places
        offset = (np.arange(places) + 0.5) / places - 0.5
        bell = np.exp(-(offset[:, None] ** 2 + offset**2) / (2 * 0.25**2))
        maps = {"random values": np.random.default_rng(0).random(shape), "the middle": np.broadcast_to(bell, shape)}
        maps["edges"] = edge_strength(pixels, shape[1:])
        found += [(name, score(values, pixels, masks)) for name, values in maps.items()]
    return found


# --- the page --------------------------------------------------------------------------------------------------------

TEXT = """
# Does attention look at the object?

Made by `make stamps` ({versions}; {processor}); nothing here is written by hand.

**Asked:** does the spatial map of any mechanism lie on the object more than Grad-CAM on the same network without
attention does? And does attention make Grad-CAM better?

**Answer.** {answer}

## How

{stamps} stamps of Tux Paint, objects cut out by hand or drawn, in {classes} classes: {named}. Each picture is a piece
of a photo (textures and others from scikit-image, dimmed at random in each channel), on it {pieces} pieces of stamps of
other classes, and above them one whole object, a quarter to a half of the picture long, anywhere. So what is salient,
colourful or has edges is not yet the object, which covers {area:.1f} % of a picture in the mean. {train:,} pictures for
training and validation and {test} for the test, {size} x {size} pixels. **The test shows other stamps than the
training**, a quarter of each class, and cuts its pieces out of these too. A stamp was left out that is shorter than
{least} pixels, fills its rectangle, or is another one mirrored.

The network is `{model}` with its ImageNet weights. Every mechanism is put in at its own place and all arms are trained
alike by `regard.compare`, all weights: {epochs} epochs, batches of {batch}, AdamW, at most {rate:g}. Gates start as
their authors start them (`start="{start}"`) and not as the identity, which is the default with learnt weights: in a
trial so short a training opened gates by hundredths alone, and every map of CBAM stayed flat. {seeds} seeds vary the
order, the crops, the validation part and the mechanism's own weights, but neither the stamps nor the test pictures.

What is compared was chosen before any map of a test picture was looked at:

* *Grad-CAM* for the class that the picture is taken for, right or wrong (attention does not know the right one either),
  at the last map of the network ({last} x {last} places) and at the last finer one ({fine} x {fine}, `{finer}`).
* *own map*: the last map of places of the attention in the network, and the last of the finer ones. Gates of many
  channels count as their mean, gates along rows and columns as their product, and weights between places
  (`non_local`) as how much each place is looked at by all. `se` has gates of channels alone, and no such map.
* *pointing*: the share of the pictures whose highest value lies on the object. *energy*: the share of the map's sum
  that does. *lifted*: the same for what is above the lowest value of each picture's map; an opened gate lets everything
  through and the object at most a little more, so that its energy is near chance whatever it prefers, while Grad-CAM is
  0 wherever it found no evidence. All are scored on the picture's pixels, where the map is blended between
  its places. By chance they are {area:.1f} %; pointing is less with coarse maps, whose highest value at the rim of the
  picture counts as its outermost pixel.
* *spread*: of a map's values beside their mean; up to {flat} a map is flat and says nothing. *edges*: the rank
  correlation with the strength of the picture's edges.

## What the maps show

Mean and standard deviation over the seeds, in brackets how many times chance.

{maps}

## Accuracy

{top1}

## Own maps against Grad-CAM on the plain network

The last map of each network, paired by seed; differences in points.

{own}

The same for the finer maps.

{own_finer}

## Grad-CAM with attention against Grad-CAM without

At the last map of the network:

{cam}

At the last finer one:

{cam_finer}

The verdicts are those of `regard compare`: exact sign-flip tests, intervals and words hold at 5 % for each table,
which is corrected for its arms; the tables are not corrected for one another. "No difference worth having" is less than
one point. All of it holds for this network, {train_each} training pictures and {epochs} epochs, after which attention
has not moved far. Other places in the network may have better maps; to pick the best on the test pictures would be no
answer.
"""


def spelt(values: list[float], digits: int = 1) -> str:
    return f"{mean(values):.{digits}f}" + (f" sd {stdev(values):.{digits}f}" if len(values) > 1 else "")


def map_table(results: Result) -> str:
    area = results["area"]
    lines = [
        "| map | network | places | pointing % | energy % | lifted % | spread | edges |",
        "|---|---|---|---|---|---|---|---|",
        f"| chance | | | {100 * area:.1f} (1.00) | {100 * area:.1f} (1.00) | {100 * area:.1f} (1.00) | | |",
    ]
    rows = [(name, "", [scores]) for name, scores in results["baselines"]]
    for name in (f"{kind}{finer}" for finer in ("", ", finer") for kind in MAPS):
        for arm, runs in results["runs"].items():
            rows.append((name, arm, [run[name] for run in runs.values() if name in run]))
    for name, arm, found in rows:
        if found:
            cells = [name, arm, f"{found[0]['places']} x {found[0]['places']}"]
            for key in SCORES:
                values = [scores[key] for scores in found]
                cells.append(f"{spelt([100 * v for v in values])} ({spelt([v / area for v in values], 2)})")
            cells += [f"{mean(scores[key] for scores in found):.2f}" for key in ("spread", "edges")]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def compared(results: Result, name: str, key: str) -> dict[str, dict[int, float]]:
    """Scores of a map of every arm that has it, and of Grad-CAM on the plain network, at the same resolution."""
    plain = name.replace("own map", "Grad-CAM")
    scores = {"none": {int(seed): run[plain][key] for seed, run in results["runs"]["none"].items()}}
    for arm, runs in results["runs"].items():
        if arm != "none" and all(name in run for run in runs.values()):
            scores[arm] = {int(seed): run[name][key] for seed, run in runs.items()}
    return scores


def verdict_table(results: Result, name: str) -> str:
    """The arms' maps against Grad-CAM on the plain network, at every score."""
    lines = [
        "| score | network | Grad-CAM, none % | this % | difference | interval | verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    for key in scores_of(name):
        scores = compared(results, name, key)
        plain = spelt([100 * value for value in scores["none"].values()])
        for verdict in statistics.judge(scores):
            this = spelt([100 * value for value in scores[verdict.arm].values()])
            cells = [key, verdict.arm, plain, this, points(verdict.mean), interval(verdict), verdict.word]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def scores_of(name: str) -> tuple[str, ...]:
    """Grad-CAM is 0 somewhere: nothing of it is lifted."""
    return SCORES if name.startswith("own") else SCORES[:2]


def answer(results: Result) -> str:
    """The verdicts at the last map in words."""
    lines, better = [], {}
    for name, what in (("own map", "own map"), ("Grad-CAM", "Grad-CAM with attention")):
        for key in scores_of(name):
            words: dict[str, list[str]] = {}
            for verdict in statistics.judge(compared(results, name, key)):
                words.setdefault(verdict.word, []).append(f"`{verdict.arm}` ({points(verdict.mean)})")
            better[name] = better.get(name, False) or any(word.startswith("better") for word in words)
            said = "; ".join(f"{word}: {', '.join(arms)}" for word, arms in words.items())
            lines.append(f"* {what}, {key}: {said}")
    first = "Some own map lies" if better["own map"] else "No own map was seen to lie"
    second = (
        "some attention makes Grad-CAM better"
        if better["Grad-CAM"]
        else "no attention was seen to make Grad-CAM better"
    )
    seeds, least = len(results["runs"]["none"]), statistics.fewest_seeds(len(results["runs"]) - 1, part=1)
    few = f" No verdict is possible with {seeds} seeds; it takes {least}." if seeds < least else ""
    return (
        f"{first} on the object more than Grad-CAM on the plain network does, in any of three scores; {second}.{few} "
        "At the last maps, against Grad-CAM without attention, in points:\n\n" + "\n".join(lines)
    )


def render(results: Result) -> str:
    from common import table

    asked, runs = results["question"], results["runs"]
    counts = results["stamps"].values()
    top1 = {arm: {int(seed): run["top1"] for seed, run in of.items()} for arm, of in runs.items()}
    first = next(iter(runs["none"].values()))
    return TEXT.lstrip().format(
        versions=", ".join(f"{name} {number}" for name, number in results["versions"].items()),
        processor=results["processor"], answer=answer(results), stamps=sum(map(sum, counts)), classes=len(counts),
        named=", ".join(f"{name} {sum(count)}" for name, count in results["stamps"].items()), pieces=PIECES,
        area=100 * results["area"], train=asked["train_images"] + asked["val_images"], test=asked["test_images"],
        size=asked["size"], least=LEAST, model=asked["model"], epochs=asked["epochs"], batch=asked["batch"],
        rate=asked["learning_rate"], start=asked["start"], seeds=len(runs["none"]), last=first["Grad-CAM"]["places"],
        fine=first["Grad-CAM, finer"]["places"], finer=FINER, flat=FIGURES["spread"].least, maps=map_table(results),
        top1=table(top1, against="none", what="top-1"), own=verdict_table(results, "own map"),
        own_finer=verdict_table(results, "own map, finer"), cam=verdict_table(results, "Grad-CAM"),
        cam_finer=verdict_table(results, "Grad-CAM, finer"), train_each=f"{asked['train_images']:,}",
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=SEEDS, help="trainings of every arm (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="only try the script: a few small pictures, one seed")
    parser.add_argument("--page", action="store_true", help="train nothing: score what is there, and write the page")
    asked = parser.parse_args()
    os.chdir(ROOT)
    torch.set_num_threads(1)  # as in the workers
    from pretrained import MODEL, weights

    folder, size, epochs, arms = (RUNS / "quick", SIZE // 2, 1, ["cbam"]) if asked.quick else (RUNS, SIZE, EPOCHS, ARMS)
    counts = {"train": 6, "test": 2} if asked.quick else {"train": TRAINING, "test": TEST}
    if asked.page:
        comparison = Comparison.load(folder)
    else:
        pictures = write_pictures(folder, RUNS / "package", counts, size)
        prepare(folder, size)
        comparison = regard.compare(
            arms, data=pictures, model=MODEL, weights=weights().relative_to(ROOT), start=START, size=size,
            epochs=epochs, batch=BATCH, learning_rate=RATE, seeds=1 if asked.quick else asked.seeds, keep="all",
            device="cpu", workers=2, out=folder,
        )  # fmt: skip
    done = comparison.scores
    seeds = [seed for seed in comparison.seeds if all(seed in done[arm] for arm in comparison.arms)]
    runs = [(arm, seed) for seed in seeds for arm in comparison.arms]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        seen = dict(zip(runs, pool.map(look, *zip(*[(folder, *run) for run in runs], strict=True)), strict=True))
    pixels, masks, _ = test_pictures(folder, size)
    results = {
        "versions": {name: version(name) for name in ("torch", "timm", "scikit-image")},
        "processor": comparison.environment["processor"],
        "question": {key: value for key, value in comparison.question.to_json().items() if key != "broken"},
        "stamps": json.loads((folder / "counts.json").read_text()),
        "area": float(masks.mean()),
        "baselines": baselines(pixels, masks),
        "runs": {arm: {str(seed): seen[arm, seed] for seed in seeds} for arm in comparison.arms},
    }
    write_text(folder / "stamps.json" if asked.quick else RESULTS, json.dumps(results, indent=1) + "\n")
    print(write_text(folder / "stamps.md" if asked.quick else PAGE, render(results)))


if __name__ == "__main__":
    main()
