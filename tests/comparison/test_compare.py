"""The whole way from a question to its answer: what is asked, refused, added, resumed and said."""

import hashlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from PIL import Image
from safetensors.torch import load_file

import regard
import tiny
from regard.base.errors import UserError
from regard.cli import main as cli
from regard.comparison import data, grid, hosts, network, prices, report, training
from regard.comparison.results import Comparison
from regard.gallery.opening import open_subjects
from stored import price


def invent(question, arms):
    return {
        "device": "cpu",
        "batch": 4,
        "rounds": 5,
        "noisy": False,
        "arms": {a: price(i) for i, a in enumerate(arms)},
    }


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """Everything happens in this process, and costs are invented."""
    tiny.train_here(monkeypatch)
    monkeypatch.setattr(prices, "measure", invent)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return tiny.fill(tmp_path_factory.mktemp("images") / "photos")


def compare(arms="se", **other):
    return regard.compare(arms, **tiny.ASKED | {"epochs": 1, "seeds": 2} | other)


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory):
    """A finished comparison; who changes it takes a copy."""
    folder = tmp_path_factory.mktemp("finished") / "out"
    with pytest.MonkeyPatch.context() as monkeypatch:
        tiny.train_here(monkeypatch)
        monkeypatch.setattr(prices, "SECONDS", 0.2)
        compare(["se", "cbam[squeeze=max]"], data=photos, out=folder)
    return folder


@pytest.fixture
def out(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "out"))


def state(folder):
    """Every file with its content and the time it was written."""
    return {
        path.relative_to(folder): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in folder.rglob("*")
        if path.is_file()
    }


# ---- an answer


def test_a_comparison_leaves_what_the_design_says(finished):
    arms = ["none", "se", "cbam_squeeze=max_"]
    found = {path.relative_to(finished).as_posix() for path in finished.rglob("*") if path.is_file()}
    found = {re.sub(r"-[0-9a-f]{8}(?=[/.])", "", name) for name in found if not Path(name).name.startswith(".")}
    expected = {"question.json", "result.json", "report.html", "cost.json", "linear.json"}
    expected |= {f"data/{name}" for name in ("images.npy", "labels.npy", "parts.npy", "meta.json")}
    expected |= {
        f"runs/{arm}/seed-000{seed}.{end}" for arm in arms for seed in (0, 1) for end in ("json", "safetensors")
    }
    expected |= {f"weights/{arm}/seed-0000.safetensors" for arm in arms} | {f"maps/{arm}.npz" for arm in arms}
    assert found == expected


def test_every_arm_is_trained_as_long_as_every_other_and_none_is_one_of_them(finished):
    comparison = Comparison.load(finished)
    assert comparison.arms == ["none", "se", "cbam[squeeze=max]"]
    assert len(comparison.done) == 6
    assert {len(record["curve"]) for record in comparison.done} == {1}
    answer = json.loads((finished / "result.json").read_text())
    assert answer["missing"] == answer["failed"] == []
    assert {verdict["arm"] for verdict in answer["verdicts"]} == {"se", "cbam[squeeze=max]"}


def test_asking_again_does_nothing_again(out, photos, monkeypatch):
    before = state(out)
    monkeypatch.setattr(training, "train", lambda *_, **__: pytest.fail("it trained again"))
    monkeypatch.setattr(prices, "measure", lambda *_: pytest.fail("it measured again"))
    again = compare(["se", "cbam[squeeze=max]"], data=photos, out=out)
    written_again = {Path("report.html"), Path("result.json"), Path("question.json"), Path(".lock")}
    assert {name for name, content in state(out).items() if content != before[name]} <= written_again
    assert len(again.asked) == 1
    assert "cbam[squeeze=max]" in str(again)


def test_only_what_is_missing_or_failed_is_done(out, photos, monkeypatch):
    missing = grid.record_path(out, "se", 1)
    missing.unlink()
    failed = grid.record_path(out, "none", 0)
    failed.write_text(json.dumps({"arm": "none", "seed": 0, "status": "failed", "reason": "bad luck"}))
    assert "bad luck" in str(Comparison.load(out))
    before = state(out)
    trained = []
    train = training.train
    monkeypatch.setattr(
        training, "train", lambda q, arm, seed, *rest: trained.append((arm, seed)) or train(q, arm, seed, *rest)
    )
    compare(["se", "cbam[squeeze=max]"], data=photos, out=out)
    assert sorted(trained) == [("none", 0), ("se", 1)]
    after = state(out)
    untouched = [name for name in before if name.match("runs/*/*.json") and out / name not in (missing, failed)]
    assert len(untouched) == 4
    assert all(before[name] == after[name] for name in untouched)
    assert "bad luck" not in str(Comparison.load(out))


def test_the_stored_command_asks_the_same_question(out, photos, finished, monkeypatch, capsys):
    (entry,) = Comparison.load(out).asked
    name, *words = shlex.split(entry["command"])
    assert name == "regard"
    words[words.index(str(finished))] = str(out)
    monkeypatch.setattr(training, "train", lambda *_, **__: pytest.fail("it is another question"))
    assert cli.run(words, debug=True) == 0
    assert len(Comparison.load(out).asked) == 1


def test_its_arms_can_be_looked_into(finished, photos):
    none, se, cbam = open_subjects(str(finished))
    stored = data.load(finished / "data").pixels.shape[-1]
    assert none.stored == stored > none.size[0]
    gallery = regard.look([none, se, cbam], sorted(photos.rglob("*.png"))[:3], checks=False)
    assert [view.name for view in gallery.views] == [
        f"{arm} in small_resnet[width=4]" for arm in ("none", "se", "cbam[squeeze=max]")
    ]
    kinds = [{column.kind for column in view.columns} for view in gallery.views]
    assert kinds == [{"grad-cam"}, {"channel", "grad-cam"}, {"channel", "spatial", "grad-cam"}]
    assert all(word.split(",")[0] in ("dark", "light") for view in gallery.views for word in view.classes)
    with pytest.raises(regard.UserError):
        open_subjects(str(photos))


def test_weights_are_kept_of_the_seeds_asked_for(photos, tmp_path):
    for keep, seeds in {"first": [0], "all": [0, 1], "none": []}.items():
        compare("eca", data=photos, out=tmp_path / keep, keep=keep)
        kept = {path.name for path in (tmp_path / keep).glob("weights/*/*")}
        assert kept == {f"seed-000{seed}.safetensors" for seed in seeds}
        assert (tmp_path / keep / "maps").exists() is bool(seeds)


# ---- another question in the same folder


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ({"epochs": 2}, "epochs was 1, now 2"),
        ({"batch": 16}, "batch was 8, now 16"),
        ({"learning_rate": 0.1}, "learning_rate was 0.004, now 0.1"),
        ({"margin": 0.02}, "margin was 0.01, now 0.02"),
        ({"model": "small_resnet[width=8]"}, r'model was "small_resnet\[width=4\]", now "small_resnet\[width=8\]"'),
        ({"start": "identity"}, 'start was "scaled", now "identity"'),
        ({"at": "stages"}, 'at was "auto", now "stages"'),
        ({"size": 24}, "size was 16, now 24"),
        ({"data": "fashion"}, 'data was ".*, now "fashion"'),
    ],
)
def test_another_question_is_refused_with_the_difference(out, photos, other, difference):
    before = state(out)
    with pytest.raises(
        UserError, match=rf"holds another question \({difference}\): ask that one, or pass another --out"
    ):
        compare(**{"data": photos, "out": out} | other)
    assert state(out) == before


def test_images_that_changed_are_another_question(photos, tmp_path):
    mine = Path(shutil.copytree(photos, tmp_path / "photos"))
    compare(data=mine, out=tmp_path / "out")
    Image.new("RGB", (18, 18), "red").save(mine / "dark" / "000.png")
    with pytest.raises(UserError, match='fingerprint was "'):
        compare(data=mine, out=tmp_path / "out")


def test_a_folder_from_before_trunks_could_be_frozen_goes_on(out, photos, tmp_path):
    stored = json.loads((out / "question.json").read_text())
    assert stored["question"].pop("trunk") == "trained"
    (out / "question.json").write_text(json.dumps(stored))
    before = tiny.outcomes(out)
    report.write(Comparison.load(out))
    grid.record_path(out, "se", 1).unlink()
    again = compare(["se", "cbam[squeeze=max]"], data=photos, out=out)
    assert tiny.outcomes(out) == before
    assert len(again.asked) == 1


def test_the_same_folder_may_be_spelled_in_two_ways(out, photos):
    assert len(compare(data=f"{photos}/", out=out).asked) == 1


# ---- more arms and seeds


def test_what_is_added_after_looking_is_counted(out, photos):
    added = compare(["se", "eca"], data=photos, out=out, seeds=3)
    assert added.arms == ["none", "se", "cbam[squeeze=max]", "eca"]
    assert added.added_after_looking == (["eca"], [2])
    assert "Added after looking: 1 seed (2) and 1 variant (eca)" in str(added)
    assert len(added.done) == 6 + 3 + 2  # eca with three seeds; none and se with the third
    again = compare("cbam[squeeze=max]", data=photos, out=out, seeds=3)
    assert again.scores["cbam[squeeze=max]"].keys() == {0, 1, 2}, "arm and seed were known, but not this run"
    assert list(json.loads((out / "cost.json").read_text())["arms"]) == again.arms


def test_what_is_added_before_looking_is_not(out, photos):
    (out / "result.json").unlink()
    added = compare(["se", "eca"], data=photos, out=out, seeds=[0, 1, 5])
    assert added.added_after_looking == ([], [])
    assert added.seeds == [0, 1, 5]


def test_an_arm_has_one_spelling(photos, tmp_path):
    comparison = compare(["none", " cbam[squeeze=max, reduction=8]"], data=photos, out=tmp_path, seeds=1)
    assert comparison.arms == ["none", "cbam[reduction=8,squeeze=max]"]


# ---- a plan


def test_auto_stops_what_is_decided_and_goes_on_with_what_is_not(photos, tmp_path, monkeypatch):
    """Accuracies are put in place of those that were trained: se is clear by the second look, eca takes all."""
    train = training.train
    gains = {"none": 0.0, "se": 0.3, "eca": 0.012}

    def invented(question, arm, seed, *rest):
        record = train(question, arm, seed, *rest)
        return record | {"top1": round(0.5 + gains[arm] + 0.01 * ((3 * seed**2 + 3 * len(arm) * seed) % 7 - 3) / 3, 4)}

    monkeypatch.setattr(training, "train", invented)
    options = {"data": photos, "out": tmp_path, "seeds": "auto", "looks": [6, 8, 10], "pairing": "seeds"}
    comparison = compare(["se", "eca"], **options)
    assert {arm: len(runs) for arm, runs in comparison.scores.items()} == {"none": 10, "se": 8, "eca": 10}
    se, eca = comparison.verdicts
    assert (se.word, se.state, se.look) == ("better by more than the margin", "decided", 2)
    assert (eca.look, comparison.missing) == (3, [])
    assert comparison.asked[0]["looks"] == [6, 8, 10]
    assert "--seeds auto --looks 6,8,10" in comparison.asked[0]["command"]
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/*.json")}
    again = compare(["se", "eca"], **options)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/*.json")} == files
    assert len(again.asked) == 1
    assert "Planned before looking: a verdict at 6, 8 and 10 seeds" in (tmp_path / "report.html").read_text()
    plain = compare(["se", "eca"], **options | {"looks": None})
    assert (plain.plan, len(plain.asked)) == (comparison.plan, 1), "auto follows what the folder has planned"
    more = compare(["se", "eca"], data=photos, out=tmp_path, seeds=12, pairing="seeds")
    assert len(more.scores["se"]) == 12
    assert more.plan == comparison.plan
    assert more.verdicts[0] == se, "what the plan decided stands"
    assert "Added after looking: 2 seeds (10, 11)" in str(more)


@pytest.mark.slow
def test_a_plan_that_was_killed_goes_on_with_the_same_runs(photos, tmp_path, monkeypatch):
    options = {"data": photos, "seeds": "auto", "looks": [2, 3], "pairing": "none"}
    whole = compare(["se", "eca"], out=tmp_path / "whole", **options)
    assert whole.plan.base == (3, 5)
    run, left = grid.run, [3]

    def dies(folder, question, runs, **others):
        run(folder, question, runs[: left[0]], **others)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(grid, "run", dies)
        for left[0] in (3, 1, 5):
            with pytest.raises(KeyboardInterrupt):
                compare(["se", "eca"], out=tmp_path / "killed", **options)
    after = compare(["se", "eca"], out=tmp_path / "killed", **options)
    assert tiny.outcomes(tmp_path / "killed") == tiny.outcomes(tmp_path / "whole")
    assert after.verdicts == whole.verdicts
    assert after.added_after_looking == ([], [])


def test_how_runs_are_compared_follows_the_start_and_can_be_chosen(photos, tmp_path):
    def pairing(name, **other):
        return compare(data=photos, out=tmp_path / name, seeds=1, **other).question.pairing

    assert pairing("drawn") == "seeds", "every seed draws its own test images from this folder"
    assert pairing("identity", start="identity") == "seeds"
    assert pairing("chosen", pairing="none") == "none"
    with pytest.raises(UserError, match=r"holds another question \(pairing was \"none\", now \"seeds\"\)"):
        pairing("chosen", pairing="seeds")


# ---- before any training


@pytest.fixture
def untrained(monkeypatch):
    monkeypatch.setattr(grid, "run", lambda *_, **__: pytest.fail("it trained"))


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize(
    ("arms", "other", "sentence"),
    [
        ([], {}, "nothing to compare: name at least one mechanism"),
        (["none"], {}, "nothing to compare"),
        (["sse"], {}, "no mechanism 'sse'; did you mean 'scse' or 'se'"),
        (["se", "se"], {}, "'se' is given twice"),
        (["cbam[squeeze=max,reduction=8]", "cbam[reduction=8,squeeze=max]"], {}, "is given twice"),
        (["wider"], {}, "--control wider"),
        (["se[reduction"], {}, "cannot read the arm"),
        (["se[rate=3]"], {}, "se has no option 'rate'"),
        (["se[reduction=abc]"], {}, "reduction is a positive whole number, got 'abc'"),
        (["se[reduction=0]"], {}, "reduction"),
        (["cbam[squeeze=min]"], {}, "squeeze"),
        (["se"], {"seeds": 0}, "seeds is how many there should be, at least 1"),
        (["se"], {"seeds": [-1]}, "seeds is how many"),
        (["se"], {"seeds": "many"}, "seeds is 'auto', how many there should be, or a list of numbers, got 'many'"),
        (["se"], {"seeds": "auto", "looks": [8, 4]}, "looks are at most 20 ascending numbers of seeds from 2 to 1000"),
        (["se"], {"seeds": 8, "looks": [4, 8]}, "looks belong to seeds=.auto"),
        (["se"], {"pairing": "images"}, "pairing is 'seeds' or 'none', got 'images'"),
        (["se"], {"epochs": 0}, "epochs must be at least 1, got 0"),
        (["se"], {"batch": 1}, "batch must be at least 2, got 1"),
        (["se"], {"size": 4}, "size must be at least 8, got 4"),
        (["se"], {"workers": 0}, "workers must be at least 1, got 0"),
        (["se"], {"learning_rate": 0.0}, "learning rate must be above 0"),
        (["se"], {"learning_rate": float("nan")}, "learning rate must be above 0"),
        (["se"], {"margin": 5}, "margin is a fraction"),
        (["se"], {"start": "here"}, "start is 'scaled', 'identity' or 'paper'"),
        (["se"], {"trunk": "cold"}, "trunk is 'trained' or 'frozen', got 'cold'"),
        (
            ["se"],
            {"trunk": "frozen"},
            "a frozen trunk must have learnt something before: pass --pretrained or --weights",
        ),
        (["se"], {"control": "deeper"}, "there is no control='deeper': the controls are"),
        (["se"], {"keep": "some"}, "keep is one of first, all, none"),
        (["se"], {"device": "abacus"}, "there is no device 'abacus' here"),
        (["se"], {"device": "cuda:99"}, "there is no device 'cuda:99' here"),
        (["se"], {"model": "resnet81"}, "no model 'resnet81' in timm"),
        (["se"], {"model": "small_resnet[wide=3]"}, "no option 'wide'"),
        (["se"], {"at": "nowhere.*"}, "nowhere"),
        (["se"], {"data": "fashon"}, "did you mean 'fashion'"),
        (["se"], {"data": "/nowhere/at/all"}, "does not exist"),
        (["se"], {"weights": "/nowhere/w.pt"}, "cannot read the weights /nowhere/w.pt"),
        (["se"], {"pretrained": True}, "small_resnet has no pretrained weights"),
        (["se"], {"pretrained": True, "control": "wider"}, "the wider control starts from no pretrained weights"),
        (["se"], {"weights": "w.pt", "control": "wider"}, "the wider control starts from no pretrained weights"),
        (["se"], {"control": "wider", "model": "test_vit"}, "at='auto'|the wider control knows"),
    ],
)
def test_a_mistake_is_a_sentence_and_nothing_is_asked(photos, tmp_path, arms, other, sentence):
    with pytest.raises(UserError, match=sentence) as raised:
        compare(arms, **{"data": photos, "out": tmp_path / "out"} | other)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out" / "question.json").exists(), "the folder is spoilt for the question put right"


@pytest.mark.usefixtures("untrained")
def test_images_that_cannot_be_read_are_refused(photos, tmp_path):
    mine = Path(shutil.copytree(photos, tmp_path / "photos"))
    (mine / "dark" / "001.png").write_text("no image")
    with pytest.raises(UserError, match=r"1 of 20 images cannot be read: 'dark/001.png'.*skip_broken=True"):
        compare(data=mine, out=tmp_path / "out")


@pytest.mark.usefixtures("untrained")
def test_a_folder_in_use_is_refused(photos, tmp_path):
    with FileLock(tmp_path / ".lock"), pytest.raises(UserError, match="another comparison is at work in"):
        compare(data=photos, out=tmp_path)


@pytest.mark.usefixtures("untrained")
def test_a_file_cannot_be_the_folder(photos, tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(UserError, match="cannot write in"):
        compare(data=photos, out=tmp_path / "out")


def test_too_few_seeds_are_said_before_training(photos, tmp_path, monkeypatch, capsys):
    said = []
    monkeypatch.setattr(grid, "run", lambda *_, **__: said.append(capsys.readouterr().err))
    compare(["se", "eca"], data=photos, out=tmp_path / "few", seeds=6, pairing="seeds", progress=True)
    compare(["se", "eca"], data=photos, out=tmp_path / "enough", seeds=7, pairing="seeds", progress=True)
    few, enough = said
    assert "6 seeds can never show a difference: with 2 comparisons it takes 7 or more." in few
    assert "never" not in enough


def test_threads_do_not_depend_on_how_much_is_left(photos, out, monkeypatch):
    """A run that went on with other threads would end with other weights than one never interrupted."""
    monkeypatch.setattr("os.sched_getaffinity", lambda process: range(12))
    given = []
    monkeypatch.setattr(grid, "run", lambda folder, question, runs, **options: given.append((len(runs), options)))
    compare(data=photos, out=out, workers=None)
    for path in out.glob("runs/*/seed-0001.json"):
        path.unlink()
    compare(data=photos, out=out, workers=None)
    assert [(left, options["workers"], options["threads"]) for left, options in given] == [(0, 6, 2), (3, 6, 2)]


# ---- the wider control


@pytest.mark.parametrize(
    "model", ["small_resnet[width=4]", *(pytest.param(m, marks=pytest.mark.slow) for m in ("test_resnet", "resnet18"))]
)
def test_the_wider_control_is_as_wide_every_time(photos, tmp_path, monkeypatch, model):
    monkeypatch.setattr(prices, "SECONDS", 0.2)
    options = {"data": photos, "out": tmp_path, "control": "wider", "model": model, "size": 32, "batch": 14}
    first = compare("cbam", seeds=1, **options)
    assert first.arms == ["none", "cbam", "wider"]
    widening = first.question.widening
    assert 1 <= widening < 4
    assert json.loads((tmp_path / "question.json").read_text())["question"]["widening"] == widening
    wider = hosts.build(model, 2, 3, seed=0, widening=widening)
    size = sum(parameter.numel() for parameter in wider.parameters())
    assert first.records["wider", 0]["parameters"] == size
    monkeypatch.setattr(prices, "widening", lambda *_: pytest.fail("it was measured again"))
    second = compare("cbam", seeds=2, **options)
    assert second.question.widening == widening
    assert second.records["wider", 1]["parameters"] == size


def test_the_control_may_come_later_and_none_stays_as_it_was(out, photos, monkeypatch):
    monkeypatch.setattr(prices, "widening", lambda question, arms: 1.75)
    before = tiny.outcomes(out)
    comparison = compare("se", data=photos, out=out, control="wider")
    assert comparison.question.widening == 1.75
    assert comparison.added_after_looking == (["wider"], [])
    after = tiny.outcomes(out)
    assert all(after[name] == before[name] for name in before)
    wider, none = (comparison.records[arm, 0]["parameters"] for arm in ("wider", "none"))
    assert wider > 2 * none


def test_a_control_that_cannot_be_does_not_spoil_the_folder(photos, tmp_path, monkeypatch):
    model = {"model": "test_efficientnet", "size": 32, "at": "blocks.*.*"}
    with pytest.raises(UserError, match="the wider control knows small_resnet and the ResNets of timm"):
        compare(data=photos, out=tmp_path, control="wider", **model)
    assert compare(data=photos, out=tmp_path, seeds=1, **model).arms == ["none", "se"]


# ---- starting from weights


def test_weights_from_a_file_start_every_arm(photos, tmp_path, monkeypatch):
    pretrained = hosts.build("small_resnet[width=4]", 9, 3, seed=77)
    torch.save(pretrained.state_dict(), tmp_path / "w.pt")
    built = {}
    build = network.build

    def watched(question, arm, seed, *example):
        built[arm] = build(question, arm, seed, *example)
        return built[arm]

    monkeypatch.setattr(network, "build", watched)
    monkeypatch.setattr(grid, "run", lambda *_, **__: None)
    comparison = compare(data=photos, out=tmp_path / "out", weights=tmp_path / "w.pt", epochs=None)
    asked = comparison.question
    assert (asked.start, asked.epochs, asked.learning_rate) == ("identity", 8, 3e-4)
    assert torch.equal(built["se"].stem[0].weight, pretrained.stem[0].weight)
    torch.save({key: value + 1 for key, value in pretrained.state_dict().items()}, tmp_path / "w.pt")
    with pytest.raises(UserError, match='weights_sha256 was "'):
        compare(data=photos, out=tmp_path / "out", weights=tmp_path / "w.pt", epochs=None)


def test_a_frozen_trunk_is_said_in_text_report_and_command(photos, tmp_path, monkeypatch):
    torch.save(hosts.build("small_resnet[width=4]", 9, 3, seed=77).state_dict(), tmp_path / "w.pt")
    options = {"data": photos, "out": tmp_path / "out", "weights": tmp_path / "w.pt"}
    comparison = compare(trunk="frozen", **options)
    assert (comparison.question.trunk, comparison.question.learning_rate) == ("frozen", 1e-2)
    assert "frozen trunk" in str(comparison)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "The backbone was frozen" in page
    assert "<code>none</code> is a linear probe" in page
    assert "--control wider" not in page, "it advises what would be refused"
    kept = {arm: load_file(tmp_path / "out" / "weights" / arm / "seed-0000.safetensors") for arm in ("none", "se")}
    assert torch.equal(kept["se"]["stem.0.weight"], kept["none"]["stem.0.weight"])
    with pytest.raises(UserError, match='trunk was "frozen", now "trained"'):
        compare(**options)
    monkeypatch.setattr(training, "train", lambda *_, **__: pytest.fail("it is another question"))
    assert cli.run(shlex.split(comparison.asked[0]["command"])[1:], debug=True) == 0


@pytest.mark.slow
def test_grey_images_in_a_timm_model_from_weights(tmp_path):
    torch.save(hosts.build("test_resnet", 4, 1, seed=3).state_dict(), tmp_path / "w.pt")
    question = {"model": "test_resnet", "weights": tmp_path / "w.pt", "size": 32, "batch": 512}
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(grid, "run", lambda *_, **__: None)
        comparison = compare(data="fashion", out=tmp_path / "out", seeds=1, **question)
    assert comparison.question.channels == 1
    assert comparison.question.normalisation == [[0.5], [0.5]]


# ---- what goes wrong on the way


def test_a_run_that_diverges_is_named_in_text_and_report(photos, tmp_path):
    comparison = compare(["se", "eca"], data=photos, out=tmp_path, learning_rate=1e30, epochs=2, seeds=1)
    assert len(comparison.failed) == 3
    text, page = str(comparison), (tmp_path / "report.html").read_text()
    for arm in ("none", "se", "eca"):
        assert re.search(rf"Failed: {arm}, seed 0: the loss became (nan|inf) in epoch [12]", text)
        assert re.search(rf"{arm}, seed 0: the loss became (nan|inf) in epoch [12]", page)
    assert len(json.loads((tmp_path / "result.json").read_text())["failed"]) == 3


def test_names_of_files_and_classes_are_text_in_the_report(tmp_path):
    photos = tiny.fill(tmp_path / "photos", ("<script>alert(1)<!--", "b&b"))
    (photos / "b&b" / "000.png").rename(photos / "b&b" / "<img src=x onerror=alert(2)>.png")
    (photos / "b&b" / "<script>alert(3).png").write_text("no image")
    comparison = compare(data=photos, out=tmp_path / "out", seeds=1, skip_broken=True)
    page = (tmp_path / "out" / "report.html").read_text()
    assert comparison.question.broken[0][0] == "b&b/<script>alert(3).png"
    assert "<script" not in page.lower()
    assert "<img src=x" not in page
    assert "&lt;script&gt;alert(1)&lt;!--" in page
    assert "b&amp;b/&lt;script&gt;alert(3).png" in page


# ---- from a script

SCRIPT = """
import torch
import regard

@regard.register("halving", category="channel", paper="-", place="branches", parameters=lambda channels: channels)
class Halving(torch.nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.full((channels,), 0.5))

    def forward(self, x):
        return x * self.scale[:, None, None]

{guard}:
    comparison = regard.compare(
        "halving", data={photos!r}, out={out!r}, size=16, model="small_resnet[width=4]", batch=8, epochs=1, seeds=1
    )
    print(comparison.scores)
"""


def run_script(folder, guard, photos):
    script = folder / "mine.py"
    script.write_text(SCRIPT.format(guard=guard, photos=str(photos), out=str(folder / "out")))
    return subprocess.run(
        [sys.executable, str(script)],
        env=tiny.ENVIRONMENT,
        preexec_fn=tiny.on_one_core,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_a_mechanism_of_the_callers_own_script_is_compared(photos, tmp_path):
    ran = run_script(tmp_path, 'if __name__ == "__main__"', photos)
    assert ran.returncode == 0, ran.stderr
    assert {name.split("/")[0] for name in tiny.records(tmp_path / "out")} == {"none", "halving"}
    assert {record["status"] for record in tiny.records(tmp_path / "out").values()} == {"done"}
    assert "'halving': {0: " in ran.stdout


def test_a_script_without_a_guard_is_told_what_to_write(photos, tmp_path):
    ran = run_script(tmp_path, "if True", photos)
    assert ran.returncode == 1
    *_, sentence = ran.stderr.strip().splitlines()
    assert sentence.startswith("regard.UserError: every worker process imports this script")
    assert 'if __name__ == "__main__":' in sentence
    assert ran.stderr.count("Traceback") == 1
    assert not tiny.records(tmp_path / "out")
