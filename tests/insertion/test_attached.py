"""What is attached, in training: frozen hosts, groups for optimisers, several attachments; and files from strangers."""

import copy
import json
import time

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import regard
from strangers import assert_same, logits, photograph, refused

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def host():
    torch.manual_seed(0)
    return timm.create_model("resnet10t", num_classes=3, zero_init_last=False)


def trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_train_only_the_added():
    model = host()
    model.conv1[0].weight.requires_grad_(False)  # the user's own choice
    before = trainable(model)
    attached = regard.attach(model, "cbam", example=X)
    added = {name for name, _ in attached.named_parameters()}
    attached.train_only()
    assert trainable(model) == added
    attached.train_only("fc", "layer4.**.bn2")
    assert trainable(model) == added | {"fc.weight", "fc.bias", "layer4.0.bn2.weight", "layer4.0.bn2.bias"}
    attached.train_all()
    assert trainable(model) == before | added
    attached.train_only()
    attached.remove()
    assert trainable(model) == before
    with refused("'cbam' was removed"):
        attached.train_only()


def test_what_several_attachments_freeze_is_counted_together():
    model = host()
    model.conv1[0].weight.requires_grad_(False)  # the user's own choice
    before = trainable(model)
    se = regard.attach(model, "se", at="layer1.**.bn2", example=X)
    eca = regard.attach(model, "eca", at="layer2.**.bn2", example=X)
    own = {name for attached in (se, eca) for name, _ in attached.named_parameters()}
    se.train_only("fc")
    eca.train_only()
    assert trainable(model) == set(), "each freezes the other, too"
    se.train_all()
    assert trainable(model) == {name for name, _ in eca.named_parameters()}
    se.train_only("fc")
    copied = copy.deepcopy(model)
    eca.remove()
    assert trainable(model) == {name for name, _ in se.named_parameters()} | {"fc.weight", "fc.bias"}
    se.train_all()
    assert trainable(model) == before | {name for name, _ in se.named_parameters()}
    for attached in regard.attached(copied):
        attached.train_all()
    assert trainable(copied) == before | own
    part = regard.attached(copied.layer1)[0]  # a view of a part of the model
    part.train_only()
    assert "layer1.0.bn2.weight" not in trainable(copied)
    assert "layer2.0.bn2.weight" in trainable(copied)
    regard.attached(copied)[0].train_all()
    assert trainable(copied) == before | own


def test_train_only_says_what_is_wrong():
    attached = regard.attach(host(), "se", example=X)
    with refused("no module with parameters matches 'fcc'; did you mean 'fc'"):
        attached.train_only("fcc")


def test_a_frozen_host_stays_bit_equal_and_the_added_learn():
    model = host()
    attached = regard.attach(model, "cbam", example=X, seed=0)
    frozen = {key: tensor.clone() for key, tensor in model.state_dict().items() if ".regard." not in key}
    added = {key: tensor.clone() for key, tensor in attached.state_dict().items()}
    attached.train_only()
    model.eval()
    attached.train()
    optimiser = torch.optim.SGD(attached.parameter_groups(weight_decay=0.1), lr=0.1)
    for _ in range(3):
        nn.functional.cross_entropy(model(X), torch.tensor([0, 1])).backward()
        optimiser.step()
        optimiser.zero_grad()
    now = model.state_dict()
    assert all(torch.equal(now[key], tensor) for key, tensor in frozen.items()), "weights and statistics"
    moved = [key for key, tensor in attached.state_dict().items() if not torch.equal(tensor, added[key])]
    assert moved


def test_groups_for_an_optimiser():
    model = host()
    attached = regard.attach(model, "cbam", example=X)
    groups = attached.parameter_groups(weight_decay=0.05, lr=1e-3, host_lr=1e-4)
    listed = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(listed) == sorted(id(parameter) for parameter in model.parameters())
    own = {id(parameter) for parameter in attached.parameters()}
    for group in groups:
        flat = group["name"].endswith("not decayed")
        assert all((parameter.dim() <= 1) == flat for parameter in group["params"])
        assert group["weight_decay"] == (0 if flat else 0.05)
        assert {id(parameter) in own for parameter in group["params"]} == {group["name"].startswith("added")}
        assert group["lr"] == (1e-3 if group["name"].startswith("added") else 1e-4)
    torch.optim.AdamW(groups)
    assert all("lr" not in group for group in attached.parameter_groups(weight_decay=0))
    attached.train_only()
    assert {group["name"].partition(",")[0] for group in attached.parameter_groups(weight_decay=0)} == {"added"}


def test_one_of_several_is_removed():
    model = host().eval()
    before = logits(model, X)
    first, second, third = (
        regard.attach(model, mechanism, at="branches", example=X, start="paper", seed=0, label=label)
        for mechanism, label in (("se", "first"), ("cbam", "second"), ("se", "third"))
    )
    with_all = logits(model, X)
    second.remove()
    assert [found.label for found in regard.attached(model)] == ["first", "third"]
    fresh = host().eval()
    for label in ("first", "third"):
        regard.attach(fresh, "se", at="branches", example=X, start="paper", seed=0, label=label)
    assert torch.equal(logits(model, X), logits(fresh, X))
    assert not torch.equal(logits(model, X), with_all)
    first.remove()
    third.remove()
    assert torch.equal(logits(model, X), before)


def test_the_state_dict_goes_round():
    model, fresh = host().eval(), host().eval()
    for where in (model, fresh):
        for mechanism in ("se", "sk"):
            regard.attach(where, mechanism, example=X)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(logits(fresh, X), logits(model, X))


def test_old_checkpoints_load_before_while_and_after():
    model, checkpoint = host(), host().state_dict()
    model.load_state_dict(checkpoint)
    attached = regard.attach(model, "sk", example=X)
    missing, unexpected = model.load_state_dict(checkpoint, strict=False)
    assert not unexpected
    assert all(".regard." in name for name in missing)
    attached.remove()
    model.load_state_dict(checkpoint)


# --- files from strangers --------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "sk.safetensors"
    regard.attach(host(), "sk", example=X).save(path)
    return path


def test_the_header(saved):
    with safe_open(saved, framework="pt") as file:
        header = json.loads(file.metadata()["regard"])
    assert header["mechanism"] == "sk"
    assert header["version"]
    assert len(header["fingerprint"]) == 16
    assert header["layouts"]["layer1.0.act1"] == ["channels_first", 0, []]
    assert header["beside"]["layer1.0.act1"]["convolution"] == "layer1.0.conv1"


HARMFUL = {
    "options of another type": lambda header: header["options"].update(branches={"a": 1}),
    "a module as an option": lambda header: header.update(options={"__class__": "os.system"}),
    "a number too many": lambda header: header["options"].update(branches=10**9),
    "channels too many": lambda header: header["channels"].update({"layer1.0.act1": 10**12}),
    "no number": lambda header: header["channels"].update({"layer1.0.act1": "64; import os"}),
    "a word that is none": lambda header: header["layouts"].update({"layer1.0.act1": ["sideways", 0, []]}),
    "no layout": lambda header: header["layouts"].pop("layer1.0.act1"),
    "another host": lambda header: header["host"].append("more"),
    "no list": lambda header: header.update(host=3),
    "a label with a dot": lambda header: header.update(label="a.b"),
    "the label of a method": lambda header: header.update(label="forward"),
    "no start": lambda header: header.update(start="zero"),
    "a mechanism that cannot be attached": lambda header: header.update(mechanism="danet_head"),
    "a convolution that is none": lambda header: header["beside"]["layer1.0.act1"].update(convolution=""),
    "a list as the record": lambda header: header.update(beside=[]),
    "something missing": lambda header: header.pop("channels"),
}


@pytest.mark.parametrize("harm", HARMFUL)
def test_a_changed_file_gives_one_sentence_and_changes_nothing(saved, harm):
    tensors = load_file(saved)
    with safe_open(saved, framework="pt") as file:
        header = json.loads(file.metadata()["regard"])
    HARMFUL[harm](header)
    save_file(tensors, saved, metadata={"regard": json.dumps(header)})
    model = host()
    before = photograph(model)
    started = time.perf_counter()
    with pytest.raises(regard.UserError) as caught:
        regard.load(model, saved)
    assert time.perf_counter() - started < 5
    assert "\n" not in str(caught.value)
    assert_same(photograph(model), before)


def test_a_small_file_asks_for_no_large_modules(saved):
    tensors = load_file(saved)
    with safe_open(saved, framework="pt") as file:
        header = json.loads(file.metadata()["regard"])
    header["channels"] = dict.fromkeys(header["channels"], 2**16)
    save_file(tensors, saved, metadata={"regard": json.dumps(header)})
    with refused("does not hold the weights of sk: it is cut short or was changed"):
        regard.load(host(), saved)


def test_a_flipped_bit_is_noticed(saved):
    content = bytearray(saved.read_bytes())
    content[-5] ^= 1
    saved.write_bytes(content)
    with refused("is damaged: its weights are not those that were written"):
        regard.load(host(), saved)


@pytest.mark.parametrize(("mechanism", "at"), [("cbam", "branches"), ("sk", "auto"), ("se", "stages")])
def test_a_host_of_another_width_is_refused(mechanism, at, tmp_path):
    regard.attach(host(), mechanism, at=at, example=X).save(tmp_path / "file.safetensors")
    wider = timm.create_model("resnet10t", num_classes=3, channels=(64, 160, 256, 512))
    before = photograph(wider)
    with refused("was made for another host: there 'layer[23].0.*' is .*, here"):
        regard.load(wider, tmp_path / "file.safetensors")
    assert_same(photograph(wider), before)
    regard.load(timm.create_model("resnet10t", num_classes=7), tmp_path / "file.safetensors")


def test_arguments_of_another_type():
    for options, words in (
        ({"seed": "a"}, "seed is a whole number"),
        ({"label": 3}, "a label is an identifier"),
        ({"at": lambda name, module: True}, "the function given as `at` takes .name, module, shape."),
    ):
        with refused(words):
            regard.attach(host(), "se", example=X, **options)
    with refused("weight_decay is a number from 0 up, got -1"):
        regard.attach(host(), "se", example=X).parameter_groups(weight_decay=-1)
