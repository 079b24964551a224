"""What is attached trains with the tools that people train with: many processes, shards, checkpoints, accumulation."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import regard

TRAINED = ("cbam", "bam", "danet_position")  # batch norms, one value for a map, several strengths; pairs of pixels
ANYWHERE = [name for name in regard.names() if regard.info(name).place is not None]
OPTIONS = {"tam": {"frames": 2}}
IMAGES = torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(1))
HALVES = IMAGES.chunk(2)


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x):
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


class Network(nn.Module):
    def __init__(self, checkpointed=None):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.ModuleList([Block(16), Block(16)])
        self.head = nn.Linear(16, 4)
        self.checkpointed = checkpointed  # whether the checkpoints are reentrant; None: there are none

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            reentrant = self.checkpointed
            x = block(x) if reentrant is None else checkpoint(block, x, use_reentrant=reentrant)
        return self.head(x.mean((2, 3)))


def network(name, **options):
    """With a mechanism that started as the identity and has learnt: nothing in it is at rest."""
    torch.manual_seed(0)
    model = Network(**options)
    attached = regard.attach(model, name, example=IMAGES, seed=0, **OPTIONS.get(name, {}))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in attached.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def backward(model, x):
    model(x).square().mean().backward()


def gradients(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def mean_of_halves(name):
    """What two processes with half of the images each must agree on."""
    model = network(name)
    found = []
    for half in HALVES:
        alone = copy.deepcopy(model)
        backward(alone, half)
        found.append(gradients(alone))
    return {key: (found[0][key] + found[1][key]) / 2 for key in found[0]}


# --- two processes -------------------------------------------------------------------------------------------------


def in_parallel(rank, folder):
    """One of two processes; the first writes down what it saw."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    seen = {name: {"ddp": distributed(name, rank), "fsdp": sharded(name, rank)} for name in TRAINED}
    if rank == 0:
        torch.save(seen, f"{folder}/seen.pt")
    dist.destroy_process_group()


def distributed(name, rank):
    model = network(name)
    backward(DistributedDataParallel(model), HALVES[rank])
    return gradients(model)


def sharded(name, rank):
    model = network(name)
    mesh = init_device_mesh("cpu", (2,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    backward(model, HALVES[rank])
    whole = StateDictOptions(full_state_dict=True)
    found = {key: parameter.grad.full_tensor() for key, parameter in model.named_parameters()}
    state = get_model_state_dict(model, options=whole)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    set_model_state_dict(model, dict(state), options=whole)  # it writes into the dictionary
    again = get_model_state_dict(model, options=whole)
    (attached,) = regard.attached(model)
    refused = [refusal(lambda: attached.save("never")), refusal(lambda: regard.attach(model, "se", example=IMAGES))]
    return {"gradients": found, "state": state, "again": again, "label": attached.label, "refused": refused}


def refusal(call):
    with pytest.raises(regard.UserError) as caught:
        call()
    return str(caught.value)


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    spawn(in_parallel, (str(folder),), nprocs=2)
    return torch.load(folder / "seen.pt")


@pytest.mark.parametrize("name", TRAINED)
def test_two_processes(seen, name):
    torch.testing.assert_close(seen[name]["ddp"], mean_of_halves(name))
    assert all(seen[name]["ddp"][key].any() for key in seen[name]["ddp"] if key.endswith(("strength", "gamma")))


@pytest.mark.parametrize("name", TRAINED)
def test_shards(seen, name):
    found = seen[name]["fsdp"]
    torch.testing.assert_close(found["gradients"], mean_of_halves(name))
    assert found["label"] == name
    assert "from a sharded model: gather its state dict" in found["refused"][0]
    assert "is sharded already" in found["refused"][1]
    plain = network(name)
    assert list(found["state"]) == list(plain.state_dict())
    trained = dict(plain.named_parameters())
    assert all(torch.equal(found["state"][key], parameter) for key, parameter in trained.items())
    assert all(torch.equal(found["again"][key], tensor) for key, tensor in found["state"].items())


# --- one process ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ANYWHERE)
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # the dry run needs no gradients
def test_activation_checkpoints(name, reentrant):
    plain, saving = network(name), network(name, checkpointed=reentrant)
    backward(plain, IMAGES)
    backward(saving, IMAGES)
    torch.testing.assert_close(gradients(saving), gradients(plain), rtol=0, atol=0)


@pytest.mark.parametrize("name", ANYWHERE)
def test_accumulated_gradients(name):
    """Of two halves, one after the other: those of the whole batch, as long as no norm looks across the batch."""
    model = network(name).double().eval()
    backward(model, IMAGES.double())
    wanted = gradients(model)
    model.zero_grad()
    for half in HALVES:
        (model(half.double()).square().mean() / 2).backward()
    torch.testing.assert_close(gradients(model), wanted)


def test_norms_synchronised_before_attaching():
    torch.manual_seed(0)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(Network()).eval()
    before = converted(IMAGES)
    attached = regard.attach(converted, "bam", at="branches", example=IMAGES)
    assert isinstance(converted.blocks[0].bn2, nn.SyncBatchNorm)
    assert attached.sites == ["blocks.0.bn2", "blocks.1.bn2"]
    assert attached.orphans == {}
    assert torch.equal(converted(IMAGES), before)


def test_norms_synchronised_after_attaching_to_blocks():
    """A block is not rebuilt: the hook stays, and the norms inside the mechanism are synchronised with the others."""
    model = Network().eval()
    regard.attach(model, "bam", at="blocks", example=IMAGES, start="paper")
    before = model(IMAGES)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    (attached,) = regard.attached(converted)
    assert attached.orphans == {}
    assert isinstance(attached.modules["blocks.0"].norm, nn.SyncBatchNorm)
    torch.testing.assert_close(converted(IMAGES), before)
