"""Hard attention beyond the contract: the retina pixel by pixel, the policy's gradient, and a game that is learnt."""

import math

import pytest
import torch

import regard
from regard.mechanisms.glimpse import look


def looked(x, place, side, scales, factor):
    """One image, slowly, from the words of the docstring."""
    patches = []
    _, height, width = x.shape
    for scale in range(scales):
        size = side * factor**scale
        top = math.floor((place[1] + 1) / 2 * height) - size // 2
        left = math.floor((place[0] + 1) / 2 * width) - size // 2
        patch = torch.zeros(x.shape[0], size, size)
        for row in range(size):
            for column in range(size):
                if 0 <= top + row < height and 0 <= left + column < width:
                    patch[:, row, column] = x[:, top + row, left + column]
        step = size // side
        patches.append(patch.unfold(1, step, step).unfold(2, step, step).mean((3, 4)))
    return torch.cat(patches)


@pytest.mark.parametrize(("side", "scales", "factor"), [(4, 1, 2), (3, 2, 3), (5, 3, 2)])
@pytest.mark.parametrize("shape", [(2, 2, 8, 20), (3, 1, 15, 6)])
def test_each_coordinate_goes_by_its_own_side(side, scales, factor, shape):
    torch.manual_seed(0)
    x = torch.randn(shape)
    places = torch.cat([torch.tensor([[-1.0, -1.0], [1.0, 1.0]]), 2 * torch.rand(1, 2) - 1])[: shape[0]]
    expected = torch.stack(
        [looked(image, place.tolist(), side, scales, factor) for image, place in zip(x, places, strict=True)]
    )
    torch.testing.assert_close(look(x, places, side=side, scales=scales, factor=factor), expected)


def test_the_centre_of_a_wide_image():
    x = torch.arange(20.0).expand(1, 1, 8, 20)
    assert look(x, torch.zeros(1, 2), side=4)[0, 0, 0].tolist() == [8, 9, 10, 11]


def test_the_loss_falls_along_the_policys_gradient_only_by_its_reward():
    torch.manual_seed(0)
    game = regard.create("glimpse", 1, classes=3, hidden=8, what=4, where=4, glimpses=2, std=0.3, dtype=torch.float64)
    x, labels = torch.randn(5, 1, 9, 12, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    start, noise = torch.rand(5, 2, dtype=torch.float64), torch.randn(2, 5, 2, dtype=torch.float64)
    played = game.play(x, labels, start=start, noise=noise, weight=2.0)
    total = played.loss_action + played.loss_baseline + 2 * played.loss_reinforce
    torch.testing.assert_close(played.loss, total)
    played.loss.backward()
    policy, classifier = game.policy[0].weight.grad.clone(), game.classifier.weight.grad.clone()

    # the density of the same choices, under torch's own distribution
    with torch.no_grad():
        means = game._watch(x, start, noise)[1]
    chosen = means + 0.3 * noise.transpose(0, 1)
    normal = torch.distributions.Normal(means, 0.3)
    torch.testing.assert_close(played.log_pi.detach(), normal.log_prob(chosen).sum(2))
    torch.testing.assert_close(played.locations, chosen.clamp(-1, 1))

    game.zero_grad()
    game.play(x, labels, start=start, noise=noise, weight=0.0).loss.backward()
    assert not game.policy[0].weight.grad.any()
    assert policy.any()
    torch.testing.assert_close(game.classifier.weight.grad, classifier)


def test_evaluation_answers_twice_the_same_and_training_does_not():
    torch.manual_seed(0)
    game = regard.create("glimpse", 1)
    x = torch.randn(3, 1, 28, 20)
    assert not torch.equal(game(x), game(x))
    game.eval()
    assert torch.equal(game(x), game(x))
    torch.testing.assert_close(game(x).exp().sum(1), torch.ones(3))


def test_the_path_is_what_is_looked_at():
    torch.manual_seed(0)
    game = regard.create("glimpse", 1, glimpses=4).eval()
    x = torch.randn(3, 1, 16, 16)
    with regard.record(game) as maps:
        game(x)
    (path,) = maps
    assert path.value.shape == (3, 4, 2)
    assert not path.value[:, 0].any()
    assert path.value[:, 1:].any()
    places = 2 * torch.rand(3, 4, 2) - 1
    with regard.record(game) as maps:
        game(x, places)
    assert torch.equal(maps[0].value, places)
    # what lies outside of the patches is not seen
    hidden = torch.ones_like(x, dtype=torch.bool)
    for place in places.unbind(1):
        marked = torch.zeros_like(x, requires_grad=True)
        look(marked, place, side=8).sum().backward()
        hidden &= marked.grad == 0
    assert hidden.any()
    assert torch.equal(game(torch.where(hidden, 9.0, x), places), game(x, places))


def test_the_policy_learns_where_to_look():
    """The class stands at the right end, which the first look, in the middle, does not reach."""
    torch.manual_seed(0)
    game = regard.create("glimpse", 1, classes=2, side=6, glimpses=2, hidden=32, what=32, where=32, std=0.3)
    optimiser = torch.optim.Adam(game.parameters(), lr=3e-3)

    def images(count):
        labels = torch.randint(2, (count,))
        x = 0.3 * torch.randn(count, 1, 6, 30)
        x[..., -6:] += (2.0 * labels - 1)[:, None, None, None]
        return x, labels

    for _ in range(250):
        optimiser.zero_grad()
        game.play(*images(64), weight=0.3).loss.backward()
        optimiser.step()
    x, labels = images(300)
    game.eval()
    with torch.no_grad():
        learnt = (game(x).argmax(1) == labels).float().mean()
        elsewhere = (game(x, torch.zeros(300, 2, 2)).argmax(1) == labels).float().mean()
    assert learnt > 0.95
    assert elsewhere < 0.7


def test_wrong_options():
    with pytest.raises(regard.UserError, match="std is above 0"):
        regard.create("glimpse", 1, std=0.0)
