"""Make the galleries of the docs: train small networks with `regard compare`, look into them with `regard look`.

Usage: python benchmarks/galleries.py [--quick]

Writes docs/galleries.md and docs/galleries/; what is trained is kept in runs/galleries. Takes ten minutes on two cores.
"""

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from regard.base.files import whole, write_text
from regard.comparison import data

ROOT = Path(__file__).parents[1]
RUNS, DOCS = Path("runs/galleries"), ROOT / "docs"
CLASSES, EACH = 4, 2  # pictures that are shown
WORTH = ("between_images", "by_class", "random_weights", "matters", "on_object", "object_area")  # said in the table
VIT = "vit_tiny_patch16_224[img_size=28,patch_size=4,embed_dim=64,depth=4,num_heads=4]"

# name -> what is said of it, how it is trained, how it is looked into
GALLERIES = {
    "convolutions": (
        "A small ResNet, plain and with squeeze-and-excitation, CBAM and a non-local block, trained on garments among "
        "pieces of others (Cluttered Fashion, 56 x 56). Masks say where the garment is.",
        ["se", "cbam", "non_local", "--data", "cluttered", "--epochs", "6"],
        ["--masks", "--query", "0.5,0.5"],
    ),
    "transformer": (
        "A small ViT, trained on garments (Fashion-MNIST, 28 x 28), seen from its upper third, and beside it "
        "the same with a CBAM on its map.",
        ["cbam", "--data", "fashion", "--epochs", "8", "--model", VIT],
        ["--query", "0.3,0.5"],
    ),
}


def pictures(run: Path, out: Path) -> bool:
    """Write a few test pictures and their masks, where the data have them: whether they do."""
    images = data.load(run / "data")
    test = images.split(0).test
    labels = np.linspace(0, len(images.classes) - 1, CLASSES).astype(int)
    chosen = [i for label in labels for i in test[images.labels[test] == label][:EACH]]
    shutil.rmtree(out, ignore_errors=True)
    for kind, stack in (("pictures", images.pixels), ("masks", images.masks)):
        (out / kind).mkdir(parents=True)
        for i in chosen if stack is not None else []:
            pixels = np.asarray(stack[i])
            pixels = 255 * pixels.astype(np.uint8) if kind == "masks" else pixels.squeeze()
            name = images.classes[images.labels[i]].replace(" ", "-").replace("/", "-")
            Image.fromarray(pixels).save(out / kind / f"{name}-{i}.png")
    return images.masks is not None


def run(*words: str) -> str:
    """A command of regard, as a user types it."""
    print("regard", shlex.join(words), flush=True)
    subprocess.run([Path(sys.executable).with_name("regard"), *words], check=True, cwd=ROOT)
    return f"regard {shlex.join(words)}"


def gallery(name: str, trained: list[str], looked: list[str], quick: bool) -> str:
    folder = RUNS / (f"quick-{name}" if quick else name)
    trained = [*trained[:-1], "1"] if quick and trained[-2] == "--epochs" else trained
    first = run("compare", *trained, "--seeds", "1", "--out", str(folder))
    masked = pictures(ROOT / folder, ROOT / folder / "shown")
    options = [
        word
        for option in looked
        for word in ([option, str(folder / "shown" / "masks")] if option == "--masks" else [option])
        if masked or option != "--masks"
    ]
    out = ROOT / folder / "look" if quick else DOCS / "galleries" / name
    second = run(
        "look", str(folder), str(folder / "shown" / "pictures"), *options, "--blocks", "--pictures", "png",
        "--out", str(out.relative_to(ROOT)),
    )  # fmt: skip
    shutil.rmtree(out / "pictures")
    with Image.open(out / "sheet.png") as sheet, whole(out / "sheet.webp") as path:
        sheet.save(path, "WEBP", quality=80)
    (out / "sheet.png").unlink()
    return f"    {first}\n    {second}\n"


def page(commands: dict[str, str]) -> str:
    lines = [
        "# Galleries",
        "",
        "What `regard look` shows of networks that `regard compare` trained, made by `make galleries` with these "
        "commands. Each folder holds gallery.html, one file for any browser, and the figures as gallery.json.",
        "",
    ]
    for name, commanded in commands.items():
        found = json.loads((DOCS / "galleries" / name / "gallery.json").read_text())
        lines += [f"## {name.capitalize()}", "", GALLERIES[name][0], "", commanded]
        lines += [f"![All pictures and maps](galleries/{name}/sheet.webp)", ""]
        lines += ["| network | place | map | what it is worth |", "|---|---|---|---|"]
        for network in found["networks"]:
            for one in network["maps"]:
                said = [f"{key.replace('_', ' ')} {one[key]:.2f}" for key in WORTH if one[key] is not None]
                words = "**" + "; ".join(one["words"]) + "**: " if one["words"] else ""
                lines.append(f"| {network['model']} | `{one['name']}` | {one['kind']} | {words}{', '.join(said)} |")
        lines.append("")
    lines += ["What the figures mean stands at the end of every gallery."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one epoch, and the docs are left alone")
    quick = parser.parse_args().quick
    commands = {name: gallery(name, trained, looked, quick) for name, (_, trained, looked) in GALLERIES.items()}
    if not quick:
        write_text(DOCS / "galleries.md", page(commands))


if __name__ == "__main__":
    main()
