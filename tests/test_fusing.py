"""What follows a gate, and the norm before it, done in the gate's own pass: in networks that others wrote."""

import copy
import pickle

import pytest
import timm
import torch
import torchvision
from torch import nn

import regard
from regard.insertion import Inserted
from regard.ops import folding
from regard.ops.ending import Pending
from regard.ops.folding import Lazy, Normed

X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
NETWORKS = {
    "torchvision resnet18": lambda: torchvision.models.resnet18(),
    "torchvision mobilenet_v2": lambda: torchvision.models.mobilenet_v2(),
    "timm resnet14t": lambda: timm.create_model("resnet14t"),
    "timm regnety": lambda: timm.create_model("regnety_002"),
    "timm efficientnet": lambda: timm.create_model("efficientnet_b0"),
}


def drawn(make):
    """A network whose norms all do something."""
    torch.manual_seed(0)
    net = make().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1)
            module.bias.data.normal_(0, 0.1)
    return net


def attached(mechanism="se", make=NETWORKS["torchvision resnet18"], **options):
    net = drawn(make)
    return net, regard.attach(net, mechanism, at="branches", example=X, start="paper", seed=0, **options)


def norms(net):
    return [module for module in net.modules() if "forward" in vars(module)]


class Block(nn.Module):
    """A residual block whose end is a function."""

    def __init__(self, end, channels=8):
        super().__init__()
        self.conv, self.norm, self.end = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), end
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        return self.end(self.norm(self.conv(x)), x)


@pytest.mark.parametrize(("mechanism", "channels_last"), [("se", False), ("eca", True), ("cbam", False), ("gct", True)])
@pytest.mark.parametrize("network", NETWORKS)
def test_the_network_computes_what_it_did(network, mechanism, channels_last):
    net, added = attached(mechanism, NETWORKS[network])
    form = torch.channels_last if channels_last else torch.contiguous_format
    net, x = net.to(memory_format=form), X.contiguous(memory_format=form)
    with torch.no_grad():
        before = net(x)
        sites = added.fuse(x)
        assert sites == [site for site in added.sites if site in sites]
        assert len(sites) >= 4
        for batch in (x, x.flip(0) * 2):
            got = net(batch)
            assert type(got) is torch.Tensor
            added.unfuse()
            assert torch.allclose(got, net(batch), atol=1e-5 * before.abs().max().item(), rtol=1e-4)
            added.fuse(x)
        added.unfuse()
        assert torch.equal(net(x), before)
    assert not norms(net)


def test_it_is_really_done_in_one_pass(monkeypatch):
    net, added = attached()
    calls = []
    added.fuse(X)
    norm = Lazy.plain
    monkeypatch.setattr(Lazy, "plain", lambda *args: calls.append("norm") or norm(*args))
    weigh = folding._weigh
    monkeypatch.setattr(folding, "_prepared", {})

    def watched(x, gate, more, cut):
        calls.append((more is not None, cut))
        return weigh(x, gate, more, cut)

    monkeypatch.setattr(folding, "_weigh", watched)
    with torch.no_grad():
        net(X)
    if len(norms(net)) == 8:  # where there are kernels
        assert calls == [(True, True)] * 4  # one for each width: two blocks alike share theirs
    assert {(end.add, end.relu) for m in net.modules() if isinstance(m, Inserted) for end in m.endings.values()} == {
        (True, True)
    }


ENDS = {
    "out of place": lambda y, x: torch.relu(y + x),
    "the other way round": lambda y, x: torch.relu(x + y),
    "in place": lambda y, x: y.add_(x).relu_(),
    "functional": lambda y, x: nn.functional.relu(torch.add(y, x), inplace=True),
    "addition alone": lambda y, x: y + x,
    "cut off alone": lambda y, x: torch.relu(y),
    "looked at before": lambda y, x: torch.relu(y + x) * y.mean(),
    "looked at between": lambda y, x: torch.relu_(s := y + x) + s + y,
    "cut off in place, looked at after": lambda y, x: (torch.relu_(y), y * 2)[1],
    "added in place, looked at after": lambda y, x: (y.__iadd__(x), y * 2)[1],
    "twice itself": lambda y, x: torch.relu(y + y),
    "scaled": lambda y, x: torch.relu(torch.add(y, x, alpha=2)),
    "a number": lambda y, x: torch.relu(y + 1),
    "broadcast": lambda y, x: torch.relu(y + x.mean((2, 3), keepdim=True)),
    "into the other": lambda y, x: x.clone().add_(y).relu(),
    "asked for its shape": lambda y, x: torch.relu(y + x.reshape(y.shape)) * y.dim() * y.size(1),
    "changed in place": lambda y, x: torch.relu(y.mul_(2) + x),
}


@pytest.mark.parametrize("inplace", [False, True], ids=["fresh", "inplace"])
@pytest.mark.parametrize("mechanism", ["se", "cbam"])
@pytest.mark.parametrize("end", ENDS)
def test_whatever_follows_the_gate_finds_its_result(end, mechanism, inplace):
    torch.manual_seed(0)
    net, x = nn.Sequential(Block(ENDS[end]), Block(ENDS[end])).eval(), torch.randn(2, 8, 6, 7)
    added = regard.attach(net, mechanism, at=["0.norm", "1.norm"], example=x, start="paper")
    with torch.no_grad():
        before = net(x)
        try:
            added.fuse(x, inplace=inplace)
        except regard.UserError as reason:
            assert "nothing to fuse" in str(reason)  # noqa: PT017
        for _ in range(2):
            got = net(x)
            assert torch.allclose(got, before, atol=1e-5 * before.abs().max().item())


@pytest.mark.parametrize("end", ["out of place", "in place", "looked at between"])
def test_training_goes_on_with_the_same_gradients(end):
    torch.manual_seed(0)
    net, x = Block(ENDS[end]).double(), torch.randn(2, 8, 6, 7, dtype=torch.float64, requires_grad=True)
    added = regard.attach(net, "cbam", at="norm", example=x.detach(), start="paper")
    plain = copy.deepcopy(net)
    added.fuse(x.detach())
    for model in (net, plain):
        model.train()
        (model(x) ** 2).sum().backward()
    assert torch.allclose(net.norm.running_mean, plain.norm.running_mean)
    for (name, a), b in zip(net.named_parameters(), plain.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad), name


def test_a_norm_that_changed_is_folded_as_it_is_now():
    net, added = attached()
    added.fuse(X)
    plain = copy.deepcopy(net)
    regard.attached(plain)[0].unfuse()
    with torch.no_grad():
        for model in (net, plain):
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.running_mean.data.mul_(0.5)  # without a version number
                    module.weight.data.mul_(1.5)
        assert torch.allclose(net(X), plain(X), atol=1e-5)
        for model in (net, plain):
            model.train()(X)
            model.eval()
        assert torch.allclose(net(X), plain(X), atol=1e-5)


def test_copies_and_pickles_are_fused_by_themselves():
    net, added = attached()
    added.fuse(X)
    with torch.no_grad():
        before = net(X)
        for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            assert all(module.forward.norm is module for module in norms(other))
            assert torch.equal(other(X), before)
            regard.attached(other)[0].remove()
            assert not norms(other)
            assert torch.equal(net(X), before)


def test_taken_out_nothing_is_left():
    net = drawn(NETWORKS["torchvision resnet18"])
    with torch.no_grad():
        before = net(X)
        added = regard.attach(net, "se", example=X, start="paper")
        added.fuse(X)
        net(X)
        added.remove()
        assert torch.equal(net(X), before)
    assert not norms(net)


def test_what_watches_the_model_sees_what_it_saw():
    net, added = attached()
    seen = []
    with torch.no_grad():
        site = net.get_submodule(added.sites[0])
        site.register_forward_hook(lambda module, args, y: seen.append(y.mean().item()))
        net(X)
        added.fuse(X)
        with regard.record(net) as maps:
            net(X)
        assert len(maps) == 8
        handle = added.modules[added.sites[1]].register_forward_hook(lambda module, args, y: seen.append(type(y)))
        net(X)
        handle.remove()
    assert seen[0] == pytest.approx(seen[-2] if isinstance(seen[-1], type) else seen[-1], rel=1e-4)
    assert torch.Tensor in seen
    assert Pending not in seen
    assert Normed not in seen


@pytest.mark.filterwarnings("ignore")
def test_compiled_and_exported_it_is_the_plain_network():
    net, added = attached()
    with torch.no_grad():
        before = net(X)
        added.fuse(X)
        exported = torch.export.export(net, (X,)).module()
        assert torch.allclose(exported(X), before, atol=1e-5)
        compiled = torch.compile(net, backend="eager", fullgraph=True)
        assert torch.allclose(compiled(X), before, atol=1e-5)
        traced = torch.jit.trace(net, X, check_trace=False)
        assert torch.allclose(traced(X), before, atol=1e-5)
        vmapped = torch.func.vmap(net)(X[None])[0]
        assert torch.allclose(vmapped, before, atol=1e-5)


def test_over_the_site_s_output_only_where_nobody_else_owns_it():
    net, added = attached(make=NETWORKS["torchvision mobilenet_v2"])
    site = net.get_submodule(added.sites[0])
    handle = site.register_forward_hook(lambda *_: None)
    with pytest.raises(regard.UserError, match=r"who|owns the output of"):
        added.fuse(X, inplace=True)
    handle.remove()
    assert added.fuse(X, inplace=True)
    block = nn.Sequential(nn.Identity(), nn.ReLU())
    also = regard.attach(block, "se", at="0", example=torch.randn(1, 8, 5, 5))
    with pytest.raises(regard.UserError, match="Identity"):
        also.fuse(torch.randn(1, 8, 5, 5), inplace=True)
    assert not any(m.endings for m in block.modules() if isinstance(m, Inserted))


def test_inplace_writes_over_the_output():
    conv, x = nn.Conv2d(3, 8, 3), torch.randn(1, 3, 9, 9)
    net = nn.Sequential(conv, nn.Identity()).eval()
    added = regard.attach(net, "gct", at="0", example=x)
    nn.init.ones_(added.modules["0"].gamma)
    pointers = []
    forward = conv.forward
    conv.forward = lambda x: pointers.append(forward(x)) or pointers[-1]
    with torch.no_grad():
        before = net(x)
        added.fuse(x, inplace=True)
        got = net(x)
    assert torch.allclose(got, before)
    assert got.data_ptr() == pointers[-1].data_ptr() != before.data_ptr()
    kept = []
    handle = net[0].register_forward_hook(lambda module, args, y: kept.append(y))  # now somebody else may own it
    with torch.no_grad():
        assert net(x).data_ptr() != pointers[-1].data_ptr()
    handle.remove()
    assert net(x).data_ptr() != pointers[-1].data_ptr(), "while gradients are recorded it is as ever"


def test_nothing_to_fuse_is_said():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)).eval()
    added = regard.attach(net, "se", at="0", example=X)
    with pytest.raises(regard.UserError, match="nothing to fuse"):
        added.fuse(X)
