"""Recurrent attention by glimpses (Mnih et al. 2014): https://arxiv.org/abs/1406.6247"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regard.base.errors import UserError
from regard.layers.norm import wide
from regard.layers.tap import Tap
from regard.registry.info import Translation, Unkept
from regard.registry.registration import register, wrong_axes

WIDEST = 4096  # pixels a side of a patch: a few small numbers must not ask for more memory than there is


def look(x: Tensor, locations: Tensor, *, side: int, scales: int = 1, factor: int = 2) -> Tensor:
    """Cut square patches around one place of each image, the wider the coarser: what a retina sees.

    Patch i has ``side * factor**i`` pixels a side, is averaged down to `side`, and is zero outside the image. A place
    (x, y) is the pixel ``floor((x + 1) / 2 * W), floor((y + 1) / 2 * H)``, which comes at ``side // 2`` of the finest
    patch.

    Args:
        x: images, (B, C, H, W).
        locations: places (x, y), (B, 2), from -1 (left, top) to 1 (right, bottom).
        side: pixels of a patch, as it is given, along each side.
        scales: number of patches.
        factor: how many times wider each patch is than the one before.

    Returns:
        (B, scales * C, side, side), the finest patch first. A place gets no gradient: it is a whole pixel.
    """
    batch = torch.arange(x.shape[0], device=x.device)[:, None, None]
    # half precision would miss pixels of a large image
    places = wide(locations.detach())
    column, row = (
        (0.5 * ((places[:, axis] + 1) * length)).floor().long() for axis, length in ((0, x.shape[3]), (1, x.shape[2]))
    )
    patches = []
    for scale in range(scales):
        size = side * factor**scale
        steps = torch.arange(size, device=x.device) - size // 2
        rows, columns = row[:, None, None] + steps[:, None], column[:, None, None] + steps
        inside = (rows >= 0) & (rows < x.shape[2]) & (columns >= 0) & (columns < x.shape[3])
        patch = x[batch, :, rows.clamp(0, x.shape[2] - 1), columns.clamp(0, x.shape[3] - 1)].permute(0, 3, 1, 2)
        patches.append(F.avg_pool2d(patch.masked_fill(~inside[:, None], 0), size // side))
    return torch.cat(patches, dim=1)


class Played(NamedTuple):
    """One game of glimpses, and what it teaches.

    Attributes:
        loss: what is to be minimised, loss_action + loss_baseline + weight * loss_reinforce.
        loss_action: negative log-likelihood of the labels.
        loss_baseline: mean square error of the baselines.
        loss_reinforce: of the policy: sum over the glimpses of -log_pi * (reward - baseline), mean over the images.
        reward: 1 where the answer was right, else 0, (B, T).
        baselines: the reward expected after each glimpse, (B, T).
        locations: the places chosen after each glimpse, (B, T, 2); at the last of them nobody looks.
        log_pi: log-density of these choices before they are cut off at -1 and 1, (B, T).
        log_probas: the answer, (B, classes).
    """

    loss: Tensor
    loss_action: Tensor
    loss_baseline: Tensor
    loss_reinforce: Tensor
    reward: Tensor
    baselines: Tensor
    locations: Tensor
    log_pi: Tensor
    log_probas: Tensor


def _parameters(
    channels: int, *, classes: int, side: int, scales: int, hidden: int, what: int, where: int, **_: Any
) -> int:
    sensor = what * (scales * side**2 * channels + 1) + 3 * where + hidden * (what + where + 2)
    policy = hidden // 2 * (hidden + 1) + 2 * (hidden // 2 + 1)
    return sensor + 2 * hidden * (hidden + 1) + policy + (classes + 1) * (hidden + 1)


def _translate(
    tensors: Mapping[str, Tensor],
    channels: int | None,
    *,
    g: int,
    k: int,
    sc: int | None = None,
    s: int | None = None,
    c: int | None = None,
    h_g: int | None = None,
    h_l: int | None = None,
    std: float = 0.05,
    hidden: int | None = None,
    hidden_size: int | None = None,
    ncls: int | None = None,
    num_classes: int | None = None,
    num_glimpses: int = 6,
) -> Translation:
    what, width = tensors["sensor.fc1.weight"].shape
    options = {
        "classes": ncls or num_classes or tensors["classifier.fc.weight"].shape[0],
        "side": g,
        "scales": k,
        "factor": sc or s or 1,
        "glimpses": num_glimpses,
        "hidden": hidden or hidden_size or tensors["rnn.h2h.weight"].shape[0],
        "what": h_g or what,
        "where": h_l or tensors["sensor.fc2.weight"].shape[0],
        "std": std,
    }
    names = {"sensor.fc1": "patch", "sensor.fc2": "place", "sensor.fc3": "what", "sensor.fc4": "where"}
    names |= {"rnn.i2h": "input", "rnn.h2h": "memory", "locator.fc": "policy.0", "locator.fc_lt": "policy.2"}
    names |= {"classifier.fc": "classifier", "baseliner.fc": "baseline"}
    return c or channels or width // (k * g * g), options, names


@register(
    "glimpse",
    category="spatial",
    attention="hard",
    paper="Mnih et al. 2014, arXiv 1406.6247",
    place=None,
    signature="(B, C, H, W) -> (B, classes)",
    parameters=_parameters,
    identity=None,
    official={"ram_reinforce": _translate},
    exceptions={
        "gradients": Unkept(
            "in training the places are drawn at random, and a place is a whole pixel: the policy that chooses it "
            "learns from the reward of `play`, not by differentiation",
            error="two calls differ",
        ),
        "a gradient of a gradient": Unkept(
            "in training the places are drawn at random, so no two calls agree", error="off by"
        ),
        "every parameter gets a gradient": Unkept(
            "the policy and the baseline get theirs in `play`, from the reward", error="policy.0.weight gets none"
        ),
        "torch.compile without a graph break": Unkept(
            "in training the places are drawn at random, so no two calls agree; there is no graph break",
            error="Tensor-likes are not close",
        ),
    },
)
class Glimpse(nn.Module):
    """Look at a few small patches of an image, one after the other, choosing where to look next, and name its class.

    Paper:    Mnih et al. 2014, Recurrent Models of Visual Attention, arXiv 1406.6247, sections 3 and 4.
    Category: spatial; hard attention: nothing but the patches is seen, at places that are learnt from reward.
    Formula:  g_t = relu(W3 relu(W1 look(x, l_t) + b1) + b3 + W4 relu(W2 l_t + b2) + b4);
              h_t = relu(Wi g_t + bi + Wh h_t-1 + bh);  m_t = tanh(W6 relu(W5 h_t + b5) + b6);
              l_t+1 = clamp(N(m_t, std), -1, 1);  y = log softmax(Wc h_T + bc)
    Shape:    x: (B, C, H, W);  look(x, l): (B, scales C, side, side);  h: (B, hidden);  l, m: (B, 2);  y: (B, classes)
    Cost:     what (scales side^2 C + hidden + 1) + where (hidden + 3) + classes (hidden + 1) + hidden (5 hidden
              + 13) / 2 + 3 parameters; reads glimpses * scales patches of each image, whatever its size.
    Place:    it is a whole classifier: call it on the image; it gives log-probabilities.
    Differs:  There is no code of the authors; this agrees with the port that everybody uses (kevinzakka), which reads
              both coordinates by the image's height: on images that are not square it looks beside the place it
              chose. Here each coordinate goes by its own side. The port draws the places also in evaluation, from a
              random start; here evaluation starts at the centre and takes the policy's mean, so it answers twice the
              same. The paper averages REINFORCE over several games and uses an LSTM on moving scenes; the core here
              is the plain recurrent one of its classifiers, and one game is played. The baseline, the policy's hidden
              layer and the factor 0.01 on its loss are the port's.
    Maps:     `path`, path, the places that are looked at, in order, values in -1..1.

    Args:
        channels: C, of the image.
        classes: number of classes.
        side: pixels along each side of a patch, as it is seen.
        scales: patches of one glimpse.
        factor: how many times wider each patch is than the one before.
        glimpses: T, number of glimpses.
        hidden: width of the recurrent state, and half of it that of the policy.
        what: hidden width for the patches.
        where: hidden width for the place.
        std: spread of the places around the policy's mean in training, where the image is 2 wide.

    Example:
        >>> import regard, torch
        >>> game = regard.create("glimpse", 1, classes=10, scales=2)
        >>> images, labels = torch.randn(4, 1, 28, 40), torch.tensor([1, 2, 3, 4])
        >>> game.play(images, labels).loss.backward()
        >>> game.eval()(images).shape
        torch.Size([4, 10])
    """

    def __init__(
        self,
        channels: int,
        *,
        classes: int = 10,
        side: int = 8,
        scales: int = 1,
        factor: int = 2,
        glimpses: int = 6,
        hidden: int = 256,
        what: int = 128,
        where: int = 128,
        std: float = 0.05,
    ) -> None:
        super().__init__()
        if hidden < 2 or std <= 0:
            raise UserError(f"glimpse: hidden is 2 or more and std is above 0, got {hidden} and {std}")
        if (widest := side * factor ** (scales - 1)) > WIDEST:
            raise UserError(
                f"glimpse: its coarsest patch would take {widest:,} pixels a side, and {WIDEST:,} are the most"
            )
        self.side, self.scales, self.factor, self.glimpses, self.std = side, scales, factor, glimpses, std
        self.patch = nn.Linear(scales * side**2 * channels, what)
        self.place = nn.Linear(2, where)
        self.what = nn.Linear(what, hidden)
        self.where = nn.Linear(where, hidden)
        self.input = nn.Linear(hidden, hidden)
        self.memory = nn.Linear(hidden, hidden)
        self.policy = nn.Sequential(nn.Linear(hidden, hidden // 2), nn.ReLU(), nn.Linear(hidden // 2, 2), nn.Tanh())
        self.classifier = nn.Linear(hidden, classes)
        self.baseline = nn.Linear(hidden, 1)
        self.path = Tap("path", low=-1.0, rest=None)

    def forward(self, x: Tensor, places: Tensor | None = None) -> Tensor:
        """Name the class of each image.

        Args:
            x: images, (B, C, H, W).
            places: where to look instead of where the policy says, (B, T, 2): random places, or a scan.

        Returns:
            log-probabilities, (B, classes). In training the places are drawn, from a random one on; in evaluation they
            are the policy's means, from the centre on.
        """
        if x.dim() != 4:
            raise wrong_axes("glimpse", x.dim() - 2)
        if places is not None:
            start, noise = places[:, 0], None
        elif self.training:
            start, noise = self._start(x), self._noise(x)
        else:
            start, noise = x.new_zeros(x.shape[0], 2), None
        states, _ = self._watch(x, start, noise, places)
        return self._answer(x, states)

    def play(
        self,
        x: Tensor,
        labels: Tensor,
        *,
        start: Tensor | None = None,
        noise: Tensor | None = None,
        weight: float = 0.01,
    ) -> Played:
        """Play one game for each image; ``play(x, labels).loss.backward()`` is what a training step needs.

        Args:
            x: images, (B, C, H, W).
            labels: their classes, (B,).
            start: places of the first glimpses, (B, 2); drawn evenly if None.
            noise: standard normal numbers that spread the places, (T, B, 2); drawn if None.
            weight: of the policy's loss.
        """
        start = self._start(x) if start is None else start
        noise = self._noise(x) if noise is None else noise
        states, means = self._watch(x, start, noise)
        chosen = (means + self.std * noise.transpose(0, 1)).detach()
        distances = (chosen - means) / self.std
        log_pi = (-0.5 * distances.square() - math.log(self.std * math.sqrt(2 * math.pi))).sum(2)
        baselines = self.baseline(states.detach()).squeeze(2).to(x.dtype)
        log_probas = self._answer(x, states)

        reward = (log_probas.argmax(1) == labels).to(x.dtype)[:, None].expand_as(baselines)
        loss_action = F.nll_loss(log_probas, labels)
        loss_baseline = F.mse_loss(baselines, reward)
        loss_reinforce = (-log_pi * (reward - baselines.detach())).sum(1).mean()
        return Played(
            loss_action + loss_baseline + weight * loss_reinforce,
            loss_action, loss_baseline, loss_reinforce,
            reward, baselines, chosen.clamp(-1, 1), log_pi, log_probas,
        )  # fmt: skip

    def _watch(
        self, x: Tensor, start: Tensor, noise: Tensor | None, places: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """All glimpses: the states after them, (B, T, hidden), and the policy's means, (B, T, 2)."""
        place, state = start, x.new_zeros(x.shape[0], self.memory.in_features)
        path, states, means = [], [], []
        for t in range(self.glimpses):
            place = place if places is None else places[:, t]
            patches = look(x, place, side=self.side, scales=self.scales, factor=self.factor).flatten(1)
            what, where = self.what(torch.relu(self.patch(patches))), self.where(torch.relu(self.place(place)))
            state = torch.relu(self.input(torch.relu(what + where)) + self.memory(state))
            # the policy learns from its reward alone
            mean = self.policy(state.detach()).to(x.dtype)
            path.append(place)
            states.append(state)
            means.append(mean)
            place = (mean if noise is None else mean + self.std * noise[t]).detach().clamp(-1, 1)
        self.path(torch.stack(path, dim=1))
        return torch.stack(states, dim=1), torch.stack(means, dim=1)

    def _answer(self, x: Tensor, states: Tensor) -> Tensor:
        return torch.log_softmax(self.classifier(states[:, -1]), dim=1).to(x.dtype)

    def _start(self, x: Tensor) -> Tensor:
        return 2 * torch.rand(x.shape[0], 2, dtype=x.dtype, device=x.device) - 1

    def _noise(self, x: Tensor) -> Tensor:
        return torch.randn(self.glimpses, x.shape[0], 2, dtype=x.dtype, device=x.device)

    def extra_repr(self) -> str:
        return f"side={self.side}, scales={self.scales}, factor={self.factor}, glimpses={self.glimpses}, std={self.std}"
