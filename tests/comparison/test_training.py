"""One run: what every arm shares, what the model sees and when, and going on after an interruption."""

import json
import random
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import regard
import tiny
from regard.base.errors import UserError
from regard.base.files import slug
from regard.comparison import checkpoint, data, evaluation, hosts, loading, network, preprocessing, training
from regard.comparison.endpoints import right
from regard.comparison.optimising import Optimiser

ARMS = ("none", "se", "cbam")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The decoded images; every test trains in a folder of its own beside them."""
    return tmp_path_factory.mktemp("training")


@pytest.fixture(scope="module")
def asked(folder, tmp_path_factory):
    return tiny.question(folder, tiny.fill(tmp_path_factory.mktemp("images") / "photos"))


@pytest.fixture
def place(folder, tmp_path):
    (tmp_path / "data").symlink_to(folder / "data")
    return tmp_path


def train(asked, arm, seed, place, tell=lambda details: None, **options):
    return training.train(asked, arm, seed, place, tell, **options)


# ---- fairness


@pytest.mark.parametrize("model", ["small_resnet[width=4]", "test_resnet", "test_convnext[drop_path_rate=0.1]"])
def test_every_arm_has_the_same_trunk(asked, model):
    host = replace(asked, model=model, size=32)
    states = {arm: network.build(host, arm, 3).state_dict() for arm in ARMS}
    for arm in ARMS[1:]:
        added = states[arm].keys() - states["none"].keys()
        assert added
        assert all(".regard." in key for key in added)
        assert all(torch.equal(states["none"][key], states[arm][key]) for key in states["none"])
    other = network.build(host, "none", 4).state_dict()
    assert any(not torch.equal(other[key], states["none"][key]) for key in other)


def test_a_mechanism_draws_its_weights_from_its_seed_alone(asked):
    def drawn(seed, **other):
        state = network.build(replace(asked, **other), "se", seed).state_dict()
        return torch.cat([value.flatten() for key, value in state.items() if ".regard." in key and "weight" in key])

    first = drawn(0)
    torch.manual_seed(1234)
    assert torch.equal(drawn(0), first)
    assert torch.equal(drawn(0, classes=["a", "b", "c", "d"]), first), "it depends on the trunk"
    assert not torch.equal(drawn(1), first)
    trunk = network.build(asked, "none", 0).state_dict()["stages.0.0.conv1.weight"].flatten()
    assert not torch.isin(first, trunk).any(), "trunk and mechanism share a stream of random numbers"


def test_building_leaves_the_random_states_as_they_were(asked):
    def states():
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002

    before = states()
    network.build(asked, "cbam", 5)
    network.check_trainable(asked, "cbam")
    assert states() == before


@pytest.mark.parametrize("seed", [0, 7])
def test_every_arm_sees_the_same_images_in_the_same_order(asked, place, monkeypatch, seed):
    seen = {}
    build = training.build

    def watched(question, arm, seed, *example):
        model = build(question, arm, seed, *example)
        seen[arm] = []
        model.register_forward_pre_hook(lambda module, args: seen[arm].append((module.training, args[0].clone())))
        return model

    monkeypatch.setattr(training, "build", watched)
    for arm in ARMS:
        train(asked, arm, seed, place)
    assert len(seen["none"]) == 3 * (2 + 1) + 1  # two steps and the validation images, three times, and the test images
    for arm in ARMS[1:]:
        calls = seen[arm][1:]  # without that from which the start is measured
        assert len(calls) > len(seen["none"]), "its gates are not asked"
        for (mode, ours), (expected_mode, theirs) in zip(calls, seen["none"], strict=False):
            assert mode is expected_mode
            assert torch.equal(ours, theirs)
    first, second = seen["none"][0][1], seen["none"][3][1]
    assert not torch.equal(first, second), "two epochs are alike"


class Spied:
    """Decoded pixels that say which of them are read."""

    def __init__(self, pixels):
        self.pixels, self.read = pixels, []
        self.shape = pixels.shape

    def __getitem__(self, index):
        rows = index[0] if isinstance(index, tuple) else index
        self.read += np.atleast_1d(rows).tolist()
        return self.pixels[index]


@pytest.mark.parametrize("arm", ["none", "se"])
def test_the_test_images_are_read_when_all_is_trained(asked, place, monkeypatch, arm):
    images = data.load(place / "data")
    spied = Spied(images.pixels)
    object.__setattr__(images, "pixels", spied)
    monkeypatch.setattr(data, "load", lambda folder: images)
    split = images.split(0)
    told = []
    record = train(asked, arm, 0, place, lambda details: told.append(len(spied.read)))
    during, after = spied.read[: told[-1]], spied.read[told[-1] :]
    assert not set(during) & set(split.test.tolist())
    if arm == "none":
        assert Counter(after) == Counter(split.test.tolist())
    else:  # and again with its gates as they are, and replaced twice
        assert {Counter(after)[image] for image in split.test.tolist()} == {4}
        assert {Counter(after)[image] for image in split.val.tolist()} == {3}
    assert set(during) == {*split.train.tolist(), *split.val.tolist()}
    assert {during.count(i) for i in split.val.tolist()} == {3}  # once an epoch
    assert record["test_images"] == len(split.test)
    assert [epoch["epoch"] for epoch in record["curve"]] == [1, 2, 3]


def test_scores_are_the_shares_of_images_that_are_right(asked, place):
    record = train(asked, "none", 0, place, keep=True)
    images = data.load(place / "data")
    split = images.split(0)
    model = network.build(asked, "none", 99)
    regard_weights = place / "weights" / "none" / "seed-0000.safetensors"
    model.load_state_dict(load_file(regard_weights))
    assert network.fingerprint(model) == record["weights_sha256"]
    mean, std = preprocessing.normalisation(images, split.train)
    x = torch.from_numpy(images.pixels[split.test])[:, :, 1:17, 1:17] / 255
    x = (x - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    right = (model.eval()(x).argmax(1).numpy() == images.labels[split.test]).mean()
    assert record["top1"] == pytest.approx(right)
    assert record["top5"] is None  # two classes
    assert json.loads(json.dumps(record)) == record


# ---- recipe


def test_batches_hold_every_image_once_and_none_is_alone():
    for count in range(2, 40):
        for size in (2, 3, 8, 64):
            batches = list(loading.batches(np.arange(count), size))
            assert np.concatenate(batches).tolist() == list(range(count))
            assert min(map(len, batches)) > 1
            assert max(map(len, batches)) <= size + 1


def test_norms_and_biases_do_not_decay(asked, place, monkeypatch):
    made = []
    monkeypatch.setattr(
        torch.optim, "AdamW", lambda groups, **options: made.append(groups) or torch.optim.SGD(groups, **options)
    )
    train(replace(asked, epochs=1), "se", 0, place)
    decayed, plain = made[0]
    assert decayed["weight_decay"] == 0.05
    assert plain["weight_decay"] == 0
    assert all(parameter.dim() > 1 for parameter in decayed["params"])
    assert all(parameter.dim() <= 1 for parameter in plain["params"])


@pytest.mark.parametrize("model", ["small_resnet[width=4]", "test_efficientnet"])
def test_the_optimiser_in_one_pass_learns_what_the_plain_one_does(asked, place, monkeypatch, model):
    """It walks through weights, gradients and moments as they lie in memory, so these must lie alike."""
    host = replace(asked, model=model, size=16, matrix_rate=None)
    fused, adam = train(host, "se", 0, place), torch.optim.AdamW
    checkpoint.path_of(place, "se", 0).unlink()
    monkeypatch.setattr(torch.optim, "AdamW", lambda groups, **options: adam(groups, **options | {"fused": False}))
    plain = train(host, "se", 0, place)
    assert fused["weights_sha256"] != plain["weights_sha256"], "the same optimiser twice"
    for ours, theirs in zip(fused["curve"], plain["curve"], strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-4)


def test_right_answers_are_counted_by_the_first_guess_and_among_five(place):
    class Ranked(torch.nn.Module):
        """Every image is of the first class, or else of the second, and so on."""

        def forward(self, x):
            return -torch.arange(12.0).expand(len(x), 12)

    images = SimpleNamespace(
        pixels=np.zeros((25, 1, 8, 8), np.uint8), labels=np.array([0, 0, 0, 1, 4, 5, 11] + [9] * 18)
    )
    asked = SimpleNamespace(batch=4, size=8, device="cpu")
    loader = loading.Loader(images, asked, loading.normaliser((0.0,), (1.0,), "cpu"))
    said = evaluation.answer(Ranked(), loader, np.arange(25))
    assert [right(said.logits, said.labels, among).sum() for among in (1, 5)] == [3, 5]


def test_a_loss_that_is_no_number_ends_the_run(asked, place):
    with pytest.raises(FloatingPointError, match=r"the loss became (nan|inf) in epoch [12]"):
        train(replace(asked, learning_rate=1e30), "se", 0, place)


def test_grey_images_take_the_average_of_a_models_normalisation(tmp_path):
    both = hosts.normalisation("resnet18", 3)
    assert both is not None
    assert both[0] == pytest.approx((0.485, 0.456, 0.406))
    grey = hosts.normalisation("resnet18", 1)
    assert grey == ((pytest.approx(sum(both[0]) / 3),), (pytest.approx(sum(both[1]) / 3),))
    prepare = loading.normaliser(*grey, "cpu")
    assert prepare(torch.zeros(2, 1, 8, 8)).shape == (2, 1, 8, 8)


# ---- a frozen trunk


@pytest.fixture(params=["small_resnet[width=4]", "test_resnet[drop_rate=0.5,drop_path_rate=0.5]"])
def frozen(asked, tmp_path, request):
    """A question about a network that has learnt: weights of another seed, norms that have seen something."""
    host = hosts.build(request.param, 7, 3, seed=41)
    torch.manual_seed(0)
    for module in host.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    torch.save(host.state_dict(), tmp_path / "learnt.pt")
    learnt = str(tmp_path / "learnt.pt")
    return replace(asked, model=request.param, weights=learnt, start="identity", trunk="frozen")


@pytest.mark.parametrize("arm", ["none", "eca", "cbam[reduction=2]"])  # few hidden units may all be dead
def test_a_frozen_trunk_stays_bit_equal_and_all_else_learns(frozen, place, arm):
    host = torch.load(frozen.weights, weights_only=True)
    before = network.build(frozen, arm, 0)
    train(frozen, arm, 0, place, keep=True)
    after = load_file(place / "weights" / slug(arm) / "seed-0000.safetensors")
    assert after.keys() == before.state_dict().keys()
    for key, value in before.state_dict().items():
        if ".regard." in key or key.startswith(("head.", "fc.")):
            assert not torch.equal(after[key], value), f"{key} has not learnt"
        else:
            assert torch.equal(after[key], host[key]), f"{key} has changed"


@pytest.mark.parametrize("arm", ["none", "cbam"])
def test_only_what_learns_is_in_train_mode_and_in_the_optimiser(frozen, place, monkeypatch, arm):
    made, modes = [], []
    adam, build = torch.optim.AdamW, training.build

    def watched(question, arm, seed, *example):
        model = build(question, arm, seed, *example)
        watch = lambda model, args: modes.append({n for n, m in model.named_modules() if m.training})  # noqa: E731
        model.register_forward_pre_hook(watch)
        made.append(model)
        return model

    monkeypatch.setattr(training, "build", watched)
    monkeypatch.setattr(torch.optim, "AdamW", lambda groups, **options: made.append(groups) or adam(groups, **options))
    train(replace(frozen, epochs=1), arm, 0, place)
    model, groups = made
    first, *_, last = modes[arm == "cbam" :]  # the first is the measuring of the start
    (head,) = (name for name in first if ".regard." not in name)
    assert head in ("head", "fc")
    assert any(".regard." in name for name in first) is (arm == "cbam")
    assert last == set(), "the test images"
    learning = {id(p) for name, p in model.named_parameters() if ".regard." in name or name.startswith(f"{head}.")}
    assert {id(p) for group in groups for p in group["params"]} == learning


def test_an_interrupted_run_with_a_frozen_trunk_ends_with_the_same_weights(frozen, place):
    whole = train(frozen, "cbam", 1, place)
    checkpoint.path_of(place, "cbam", 1).unlink()
    for epochs in (1, 1):
        with pytest.raises(Stopped):
            train(frozen, "cbam", 1, place, stop_after(epochs))
    assert train(frozen, "cbam", 1, place)["weights_sha256"] == whole["weights_sha256"]


# ---- interruption


class Stopped(Exception):
    pass


def stop_after(epochs):
    """A `tell` that interrupts when so many epochs were checkpointed."""
    ended = []

    def tell(details):
        if len(ended) == epochs:
            raise Stopped
        if "val_top1" in details:
            ended.append(details)

    return tell


@pytest.mark.parametrize("arm", ["none", "cbam"])
@pytest.mark.parametrize("model", ["small_resnet[width=4]", "test_resnet[drop_rate=0.5,drop_path_rate=0.5]"])
def test_an_interrupted_run_ends_with_the_same_weights(asked, place, arm, model):
    host = replace(asked, model=model, epochs=3)
    whole = train(host, arm, 1, place)
    checkpoint.path_of(place, arm, 1).unlink()
    for epochs in (0, 1, 0, 1):  # the second and the last of them get on by one epoch
        with pytest.raises(Stopped):
            train(host, arm, 1, place, stop_after(epochs))
    torch.manual_seed(5)
    resumed = train(host, arm, 1, place)
    assert resumed["weights_sha256"] == whole["weights_sha256"]
    assert resumed["top1"] == whole["top1"]
    assert [e["train_loss"] for e in resumed["curve"]] == [e["train_loss"] for e in whole["curve"]]
    assert (whole["resumed"], resumed["resumed"]) == (0, 2)


@pytest.fixture
def interrupted(asked, place):
    """A checkpoint after two of three epochs, and what the run ends with."""
    whole = train(asked, "se", 0, place)
    path = checkpoint.path_of(place, "se", 0)
    assert path.is_file()
    return path, whole


def test_a_checkpoint_is_used(asked, place, interrupted):
    """Which the tests of those that are not need in order to mean something."""
    _, whole = interrupted
    again = train(asked, "se", 0, place)
    assert again["resumed"] == 1
    assert again["weights_sha256"] == whole["weights_sha256"]
    assert again["curve"][0]["seconds"] == whole["curve"][0]["seconds"]


@pytest.mark.parametrize(
    "environment", [{"torch": "1.0"}, {"regard": "0.0.1"}, {"threads": 64}, {"processor": "Another"}], ids=str
)
def test_a_checkpoint_from_elsewhere_is_not_used(asked, place, interrupted, environment):
    checkpoint, whole = interrupted
    state = torch.load(checkpoint, weights_only=True)
    torch.save(state | {"environment": state["environment"] | environment}, checkpoint)
    again = train(asked, "se", 0, place)
    assert again["resumed"] == 0
    assert again["weights_sha256"] == whole["weights_sha256"]


def test_a_checkpoint_of_another_number_of_threads_is_not_used(asked, place, interrupted):
    torch.set_num_threads(2)
    try:
        assert train(asked, "se", 0, place)["resumed"] == 0
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "other", "flipped"])
def test_a_damaged_checkpoint_is_not_used(asked, place, interrupted, damage):
    checkpoint, whole = interrupted
    content = bytearray(checkpoint.read_bytes())
    if damage == "flipped":  # one bit of one weight
        content[content.index(torch.load(checkpoint, weights_only=True)["model"]["head.weight"].numpy().tobytes())] ^= 1
    if damage == "other":
        torch.save({"something": "else"}, checkpoint)
    else:
        checkpoint.write_bytes({"cut": content[:-999], "empty": b"", "text": b"{}", "flipped": content}[damage])
    again = train(asked, "se", 0, place)
    assert again["resumed"] == 0
    assert again["weights_sha256"] == whole["weights_sha256"]


def test_a_checkpoint_that_cannot_be_finished_leaves_the_one_before(asked, place, interrupted, monkeypatch):
    path, _ = interrupted
    before = path.read_bytes()
    path.unlink()
    path.write_bytes(before)
    save = torch.save

    def fail(state, path):
        save(state, path)
        with path.open("r+b") as file:
            file.truncate(1000)
        raise OSError("the disk is full")

    monkeypatch.setattr(torch, "save", fail)
    state = torch.load(path, weights_only=True)
    model = network.build(asked, "se", 0)
    with pytest.raises(OSError, match="full"):
        checkpoint.save(path, model, Optimiser(model, 1e-3, 0.05, 0.05), state["curve"], 0)
    assert path.read_bytes() == before
    assert not list(path.parent.glob(".*")), "nothing half-written stays"


# ---- what can be trained


def test_a_model_that_does_not_classify_is_refused(asked, monkeypatch):
    monkeypatch.setattr(network, "build", lambda *_, **__: torch.nn.Conv2d(3, 2, 1))
    with pytest.raises(UserError, match=r"is no classifier: it should give \(batch, 2\)"):
        network.check_trainable(asked, "none")


def test_a_place_that_is_not_there_is_refused(asked):
    with pytest.raises(UserError, match="nowhere"):
        network.check_trainable(replace(asked, at="nowhere.*"), "se")


def test_identity_start_keeps_the_trunks_answer(asked):
    x = torch.randn(2, 3, 16, 16)
    plain = network.build(asked, "none", 0).eval()(x)
    same = network.build(replace(asked, start="identity"), "cbam", 0).eval()(x)
    other = network.build(asked, "cbam", 0).eval()(x)
    assert torch.equal(plain, same)
    assert not torch.allclose(plain, other)


def test_the_record_says_where_it_was_made(asked, place):
    record = train(replace(asked, epochs=1), "se", 0, place)
    assert record["environment"]["regard"] == regard.__version__
    assert record["environment"]["threads"] == 1
    assert record["parameters"] > training.train(replace(asked, epochs=1), "none", 0, place, print)["parameters"]
