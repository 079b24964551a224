"""Constant twins and other controls of a comparison, and what is said of gates: how they started, opened, and count."""

import json
import re
import shlex
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import regard
import tiny
from regard.base.errors import UserError
from regard.base.files import slug
from regard.cli import main as cli
from regard.comparison import data, gates, hosts, network, preprocessing, prices, report, report_tables, training
from regard.comparison.arms import controls
from regard.comparison.compare import every_arm
from regard.comparison.records import OPEN, opened
from regard.comparison.results import Comparison
from regard.comparison.wording import points, typeset
from stored import price, store

ARMS = ["none", "se", "cbam[squeeze=max]", "constant[se]", "constant[cbam[squeeze=max]]", "parameters"]


def invent(question, arms):
    return {
        "device": "cpu",
        "batch": 4,
        "rounds": 5,
        "noisy": False,
        "arms": {a: price(i) for i, a in enumerate(arms)},
    }


def compare(arms, **other):
    return regard.compare(arms, **tiny.ASKED | {"epochs": 1, "seeds": 1} | other)


@pytest.fixture(autouse=True)
def here(monkeypatch):
    tiny.train_here(monkeypatch)
    monkeypatch.setattr(prices, "measure", invent)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return tiny.fill(tmp_path_factory.mktemp("images") / "photos")


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        tiny.train_here(monkeypatch)
        monkeypatch.setattr(prices, "measure", invent)
        folder = tmp_path_factory.mktemp("finished") / "out"
        return compare(
            ["se", "cbam[squeeze=max]"], control=["parameters", "constant"], data=photos, out=folder, keep="none"
        )


def test_every_gating_arm_gets_a_twin(finished):
    assert finished.arms == ARMS
    assert finished.twins == {"se": "constant[se]", "cbam[squeeze=max]": "constant[cbam[squeeze=max]]"}
    assert finished.failed == []
    assert finished.missing == []
    plain = finished.records["none", 0]["parameters"]
    channels = {"se": 4 + 8 + 16, "cbam[squeeze=max]": 4 + 8 + 16 + 4**2 + 2**2 + 1**2}
    for arm, other in finished.twins.items():
        assert finished.records[other, 0]["parameters"] == plain + channels[arm]
        assert "gates" not in finished.records[other, 0]
        assert finished.records[arm, 0]["weights_sha256"] != finished.records[other, 0]["weights_sha256"]
    most = max(finished.records[arm, 0]["parameters"] for arm in ("se", "cbam[squeeze=max]"))
    assert finished.records["parameters", 0]["parameters"] >= most
    assert list(finished.cost["arms"]) == ["none", "se", "cbam[squeeze=max]", "parameters"]
    assert "narrow" not in finished.cost or not any("constant" in arm for arm in finished.cost["narrow"])


def test_the_command_asks_the_same_again(finished, monkeypatch, capsys):
    given = {}

    def ask(arms, **options):
        given.update(options, arms=arms)
        raise UserError("enough")

    words = shlex.split(finished.asked[-1]["command"])
    monkeypatch.setattr("regard.comparison.compare.compare", ask)
    monkeypatch.setattr("sys.argv", words)
    assert cli.run(words[1:]) == 2
    assert capsys.readouterr().err == "regard: enough\n"
    assert every_arm(given["arms"], controls(given["control"])) == ARMS[1:]
    assert given["start"] == finished.question.start == "scaled"


def test_the_same_folder_goes_on_with_more(finished, photos):
    before = tiny.outcomes(finished.folder)
    again = compare("eca", control="constant", data=photos, out=finished.folder, keep="none")
    assert again.arms == [*ARMS, "eca", "constant[eca]"]
    after = tiny.outcomes(finished.folder)
    assert all(after[name] == before[name] for name in before)


def test_a_kept_twin_is_built_again_and_draws_no_maps(place, monkeypatch):
    folder, asked = place
    record = training.train(replace(asked, epochs=1), "constant[sge]", 0, folder, lambda details: None, keep=True)
    assert not (folder / "maps").exists()
    again = network.build(asked, "constant[sge]", 0)
    again.load_state_dict(load_file(folder / "weights" / slug("constant[sge]") / "seed-0000.safetensors"))
    assert network.fingerprint(again) == record["weights_sha256"]


@pytest.mark.parametrize(
    ("arms", "control", "sentence"),
    [
        ("constant[se]", None, "'constant\\[se\\]' is the twin of an arm: ask for se with --control constant"),
        ("parameters", None, "'parameters' is no mechanism: ask for it with --control parameters"),
        ("se", "constant,deeper", "there is no control='deeper': the controls are constant, wider, parameters, one"),
    ],
)
def test_what_is_refused(photos, arms, control, sentence):
    with pytest.raises(UserError, match=sentence):
        compare(arms, control=control, data=photos)


def test_an_arm_without_gates_gets_no_twin(photos, tmp_path, capsys):
    @regard.register("halved", category="channel", paper="-", place="branches", parameters=lambda channels: 0)
    class Halved(torch.nn.Module):
        def __init__(self, channels):
            super().__init__()

        def forward(self, x):
            return x / 2

    try:
        asked = {"data": photos, "out": tmp_path / "out", "progress": True}
        comparison = compare("halved", control="constant", **asked)
    finally:
        regard.registry.registration.registered.pop("halved")
    assert comparison.arms == ["none", "halved"]
    assert "halved has no gate that a constant could stand for" in capsys.readouterr().err
    assert comparison.gates["halved"]["branch_scale"] == pytest.approx(0.5)
    assert comparison.gates["halved"]["opened"] is None


@pytest.mark.parametrize(
    ("gain", "word"), [(0.03, "uses its input"), (0.0, "a constant does the same"), (-0.03, "a constant does better")]
)
def test_the_verdict_against_the_twin_has_words(tmp_path, gain, word):
    gains = {"none": 0.0, "se": 0.01 + gain, "constant[se]": 0.01}
    comparison = Comparison.load(store(tmp_path, gains=gains, seeds=range(16)))
    assert comparison.uses_input == {"se": word}
    (verdict,) = comparison.against("constant[se]")
    assert (verdict.arm, verdict.against) == ("se", "constant[se]")
    assert [verdict.arm for verdict in comparison.against("none")] == ["se"]
    assert any(note.startswith("Constant: se ") and word in note for note in comparison.notes())
    assert json.loads((comparison.save()).read_text())["uses_input"] == {"se": word}


def test_a_twin_that_was_interrupted_ends_the_same(photos, tmp_path):
    asked = tiny.question(tmp_path, photos, start="scaled")

    class Killed(Exception):
        pass

    def kill(details):
        if "val_top1" in details and details["done"] > 0.5:
            raise Killed

    whole = training.train(asked, "constant[cbam]", 0, tmp_path, lambda details: None)
    with pytest.raises(Killed):
        training.train(asked, "constant[cbam]", 0, tmp_path, kill)
    again = training.train(asked, "constant[cbam]", 0, tmp_path, lambda details: None)
    assert again["resumed"] == 1
    assert again["weights_sha256"] == whole["weights_sha256"]


# ---- gates


@pytest.fixture(scope="module")
def place(photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gates")
    return folder, tiny.question(folder, photos)


@pytest.mark.parametrize(("start", "expected"), [("paper", 0.25), ("scaled", 1.0), ("identity", 1.0)])
def test_the_record_says_by_how_much_a_start_shrinks_the_branch(place, start, expected):
    folder, asked = place
    record = training.train(replace(asked, epochs=1, start=start), "cbam", 0, folder, lambda details: None)
    assert list(record["branch_scale"]) == [f"stages.{stage}.0.norm2" for stage in range(3)]
    for scale in record["branch_scale"].values():
        assert scale == pytest.approx(expected, rel=1e-6 if start == "identity" else 0.25)
    assert [gate["strength"] is None for gate in record["gates"]] == [start != "identity"] * 6


def test_every_arm_starts_from_the_same_images(place, monkeypatch):
    folder, asked = place
    images = data.load(folder / "data")
    seen = {}
    build = training.build
    spy = lambda q, arm, seed, example: (seen.setdefault((arm, seed), example), build(q, arm, seed, example))[1]  # noqa: E731
    monkeypatch.setattr(training, "build", spy)
    for arm, seed in [("none", 0), ("se", 0), ("constant[se]", 0), ("se", 1)]:
        training.train(replace(asked, epochs=1), arm, seed, folder, lambda details: None)
    assert torch.equal(seen["none", 0], seen["se", 0])
    assert torch.equal(seen["none", 0], seen["constant[se]", 0])
    assert not torch.equal(seen["se", 0], seen["se", 1])
    split = images.split(0)
    mean, std = preprocessing.normalisation(images, split.train)
    pixels = torch.from_numpy(images.pixels[split.train])[:, :, 1:17, 1:17] / 255
    known = (pixels - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    for image in seen["none", 0]:
        assert (known - image).abs().amax((1, 2, 3)).min() < 1e-5, "it is no training image"


def model(name="cbam"):
    torch.manual_seed(0)
    net = hosts.build("small_resnet[width=4]", 3, 3, seed=0)
    x = torch.randn(12, 3, 16, 16)
    regard.attach(net, name, example=x, start="paper", seed=0)
    return net.eval(), x


def test_how_far_gates_opened_is_counted_over_batches():
    net, x = model()
    openings = gates.Openings(net)
    with openings.watched(), torch.no_grad():
        net(x[:5]), net(x[5:])
    told = {gate["name"]: gate for gate in openings.told()}
    with regard.record(net, every=False) as maps, torch.no_grad():
        net(x)
    assert list(told) == [found.name for found in maps]
    for found in maps:
        value = found.value.double().numpy().reshape(len(x), -1)
        gate = told[found.name]
        assert gate["mean"] == pytest.approx(value.mean(), rel=1e-5)
        assert gate["places"] == pytest.approx(np.sqrt(value.var(1).mean()), rel=1e-3, abs=1e-7)
        assert gate["images"] == pytest.approx(np.sqrt(value.var(0).mean()), rel=1e-3, abs=1e-7)


def test_a_gate_is_replaced_by_its_mean_or_by_that_of_another_image():
    net, x = model("se")
    taps = [tap for _, tap in regard.layers.tap.taps(net)]
    with torch.no_grad():
        means = gates.averages(net, lambda: [net(x[:7]), net(x[7:])])
        with regard.record(net, every=False) as own:
            plain = net(x)
        with gates.replaced(net, means), regard.record(net, every=False) as same:
            flat = net(x)
        with gates.replaced(net, None), regard.record(net, every=False) as rolled:
            net(x)
        assert torch.equal(net(x), plain), "something stayed behind"
    assert not any(tap._forward_hooks for tap in taps)
    assert not torch.equal(flat, plain)
    for mine, average in zip(own, same, strict=True):
        if mine.name == own[0].name:  # later ones see another input
            torch.testing.assert_close(average.value, mine.value.mean(0, keepdim=True).expand_as(mine.value))
        assert torch.equal(average.value, average.value[:1].expand_as(average.value))
    assert torch.equal(rolled[0].value, own[0].value.roll(1, 0))


def test_the_record_says_what_the_accuracy_loses(finished):
    record = finished.records["se", 0]
    assert record["gate_images"] == record["test_images"]
    assert record["top1_own_gate"] == record["top1"]
    told = finished.gates["se"]
    assert told["mean_gate"] == pytest.approx(record["top1"] - record["top1_mean_gate"])
    assert told["other_gate"] == pytest.approx(record["top1"] - record["top1_other_gate"])
    assert "none" not in finished.gates


def entry(**other):
    return {"name": "gate", "kind": "channel", "mean": 2.0, "places": 0.0, "images": 0.0, "strength": None} | other


def test_a_gate_that_only_scales_did_not_open(tmp_path):
    assert opened([]) is None
    assert opened([entry(), entry(places=1.99 * OPEN, images=1.99 * OPEN)]) is False
    assert opened([entry(), entry(places=2.01 * OPEN)]) is True
    assert opened([entry(images=2.01 * OPEN)]) is True
    folder = store(tmp_path, gains={"none": 0.0, "se": 0.0})
    for path in folder.glob("runs/se/*.json"):
        kept = json.loads(path.read_text()) | {"gates": [entry()], "branch_scale": {"a": 0.5, "b": None}}
        path.write_text(json.dumps(kept))
    comparison = Comparison.load(folder)
    assert comparison.gates["se"]["opened"] is False
    assert any("it was not tried" in note for note in comparison.notes())
    assert "Shrunk: at the start se multiplies its branch by 0.50." in comparison.notes()


def test_the_parameters_control_is_the_least_that_has_as_many(place):
    _, asked = place
    asked = replace(asked, model="small_resnet[width=8]")
    factor = prices.widening_parameters(asked, ["gam", "se"])
    assert factor == prices.widening_parameters(asked, ["gam", "se"])
    count = lambda arm, factor: sum(  # noqa: E731
        p.numel() for p in network.build(replace(asked, widening_parameters=factor), arm, 0).parameters()
    )
    assert count("parameters", factor) >= count("gam", None) > count("parameters", factor - 1 / 16)


def test_the_page_says_first_whether_a_mechanism_uses_its_input(finished, monkeypatch):
    monkeypatch.setattr(type(finished), "trained", True)
    words = {"se": "uses its input", "cbam[squeeze=max]": "a constant does the same"}
    monkeypatch.setattr(type(finished), "uses_input", words)
    page = re.sub(r"\s+", " ", report.write(finished).read_text())
    top = page.partition("How large are the differences?")[0]
    assert "Does se use its input? Yes: it is right more often than its twin" in top
    assert "Does cbam[squeeze=max] use its input? Its accuracy does not show it: a twin" in top


def test_the_report_says_whether_the_gates_look(finished):
    page = " ".join((finished.folder / "report.html").read_text().split())
    assert "Do the gates depend on their input?" in page
    told = finished.gates["se"]
    for word in ("mean_gate", "other_gate"):
        assert f"<td>{typeset(points(-told[word]))}</td>" in page
    (row,) = [row for row in report_tables.gates(finished) if row["arm"] == "se"]
    assert row["word"] == (finished.uses_input["se"] if finished.trained else "")
    assert row["opened"] in ("yes", "no")
