"""What samples are taken for: digits by a small classifier, emoji by the nearest one and its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..perceptual import perceptual
from . import augment, crops, data, texts
from .objectives import Objective
from .samples import sample


class Classifier(nn.Module):
    """A small convolutional network for grey images of 32 x 32; `features` [N, 64] are what `head` sees."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * 64, 64), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x))
        return out


def train_classifier(images: Tensor, labels: Tensor, classes: int, steps: int = 900, seed: int = 0) -> Classifier:
    """A classifier trained on images [N, 1, 32, 32] in [-1, 1], mildly warped, by Adam."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Classifier(classes)
        optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
        rng = np.random.default_rng(seed)
        for step in range(steps):
            optimiser.param_groups[0]["lr"] = 2e-3 * min(1.0, 2 * (1 - step / steps))
            pick = torch.from_numpy(rng.integers(len(images), size=64))
            loss = F.cross_entropy(network(augment.warp(images[pick], rng, 0.12, 0.7)), labels[pick])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    return network.eval().requires_grad_(False)


def frechet(a: Tensor, b: Tensor) -> float:
    """Frechet distance |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)) of the Gaussians of two sets of features [N, D]."""
    a, b = a.double(), b.double()
    covariances = [torch.cov(f.T) for f in (a, b)]
    values, vectors = torch.linalg.eigh(covariances[0])
    root = vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ covariances[1] @ root).clamp(min=0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + sum(torch.trace(c) for c in covariances) - 2 * cross)


def digits(
    task: Objective,
    network: Callable[..., Tensor],
    pack: data.Pack,
    count: int = 2000,
    confident: float = 0.9,
    guidance: float = 2.0,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """How samples of a class-conditional prior look to a classifier that was trained on images held out from it.

    Four fifths of the held-out images train it, the rest test it. `recognised`: share of samples without a label that
    one class has a probability over `confident` for (`recognised_real`: of the test images); `shares`: the least and
    the greatest share of a class among them; `right`: share of samples with a label that are taken for it, surely or
    not; `recognised_guided`, `shares_guided`, `right_guided`: of samples with labels in turn and `guidance` towards
    them; the Frechet distances to the training images in the classifier's features are of the samples without label and
    of the held-out images that it was not trained on, as many of each.
    """
    unseen, known = crops.held_out_crops(pack, 32)
    labels = known["label"]
    testing = torch.arange(len(unseen)) % 5 == 0
    classes = int(labels.max()) + 1
    judge = train_classifier(unseen[~testing], labels[~testing], classes)
    accuracy = float((judge(unseen[testing]).argmax(1) == labels[testing]).float().mean())
    say(f"classifier: {accuracy:.3f} of the held-out images right")
    seen = pack.select(lambda e: e["split"] == "train")
    real = _images(seen)
    free = sample(task, network, (count, 1, 32, 32), seed=1)
    say("samples without a label made")
    asked = torch.arange(count) % classes
    label = {"label": asked}
    given = sample(task, network, (count, 1, 32, 32), conditions=label, seed=2)
    guided = judge(sample(task, network, (count, 1, 32, 32), conditions=label, guidance=guidance, seed=3)).softmax(1)
    chances = judge(free).softmax(1)

    def shares(chances: Tensor) -> list[float]:
        found = torch.bincount(chances.argmax(1), minlength=classes) / len(chances)
        return [round(float(found.min()), 4), round(float(found.max()), 4)]

    def recognised(chances: Tensor) -> float:
        return round(float((chances.amax(1) > confident).float().mean()), 4)

    features = [judge.body(x) for x in (real, free, unseen[testing])]
    return {
        "classifier_accuracy": round(accuracy, 4),
        "recognised": recognised(chances),
        "recognised_real": recognised(judge(unseen[testing]).softmax(1)),
        "shares": shares(chances),
        "right": round(float((judge(given).argmax(1) == asked).float().mean()), 4),
        "guidance": guidance,
        "recognised_guided": recognised(guided),
        "shares_guided": shares(guided),
        "right_guided": round(float((guided.argmax(1) == asked).float().mean()), 4),
        "frechet": round(frechet(features[0], features[1][: len(features[2])]), 2),
        "frechet_real": round(frechet(features[0], features[2]), 2),
        "samples": count,
    }


def emoji(
    task: Objective,
    network: Callable[..., Tensor],
    pack: data.Pack,
    encoder: Path,
    shape: tuple[int, ...] = (3, 64, 64),
    decode: Callable[[Tensor], Tensor] | None = None,
    count: int = 100,
    among: int = 20,
    guidance: float = 3.0,
    draws: int = 20,
) -> dict[str, Any]:
    """How often a guided sample for a name never trained on is given that name back, among `among`.

    The prompts are the short names of trained emoji that differ from the trained names. A sample is taken for the
    trained emoji nearest to it, and its name's embedding is compared with those of the prompt and of `among` - 1
    others, `draws` times. Nearest by each distance that can be had: of pixels, and a perceptual one (see
    `unveil.perceptual`). "Real ones held out" is the same for the emoji that were never trained on, with their
    own names, flags left out: what a judge of this kind makes of real ones. `encoder`: the wheel of the text encoder;
    `decode`: what makes images of samples of `shape`.
    """
    seen, unseen = pack.select(lambda e: e["split"] == "train"), pack.select(lambda e: e["split"] != "train")
    names = {e["caption"] for e in seen.entries}
    spoken = [e["short"].replace("_", " ").replace("-", " ") for e in seen.entries]
    spoken = [s for s in spoken if s not in names and s.replace(" ", "").isalpha() and "flag" not in s]
    chosen = [spoken[i] for i in np.random.default_rng(0).permutation(len(spoken))[:count]]
    prompts = torch.from_numpy(texts.embed(chosen, encoder))
    x = sample(task, network, (len(chosen), *shape), conditions={"text": prompts}, guidance=guidance)
    x = x if decode is None else decode(x)
    known = seen.conditions(range(len(seen)))["text"]
    among = min(among, len(chosen))
    plain = [k for k, e in enumerate(unseen.entries) if "flag" not in e["caption"]]
    own = unseen.conditions(plain)["text"]
    out: dict[str, Any] = {"prompts": len(chosen), "guidance": guidance, "chance": round(1 / among, 3)}
    eye = perceptual()
    eyes: dict[str, Callable[[Tensor], Tensor]] = {"pixels": lambda z: z.flatten(1)}
    for name, embed in (eyes if eye is None else eyes | {eye.name: eye.embed}).items():
        real = _points(embed, _images(seen))

        def taken(z: Tensor, embed: Callable[[Tensor], Tensor] = embed, real: Tensor = real) -> Tensor:
            return known[torch.cdist(_points(embed, z), real).argmin(1)]

        out[name] = _retrieved(prompts, taken(x), among, draws)
        if len(plain) >= among:
            out[f"{name}, real ones held out"] = _retrieved(own, taken(_images(unseen)[plain]), among, draws)
    return out


def _images(pack: data.Pack) -> Tensor:
    """All images of a pack [N, C, H, W] in [-1, 1]."""
    stack = torch.stack([torch.from_numpy(pack.image(k).copy()) for k in range(len(pack))])
    return stack.permute(0, 3, 1, 2).float() / 127.5 - 1


def _points(embed: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """What `embed` makes of images in [-1, 1], few at a time, for it wants them in [0, 1] and is large."""
    return torch.cat([embed((part + 1) / 2) for part in torch.split(images, 50)])


def _retrieved(own: Tensor, taken: Tensor, among: int, draws: int) -> float:
    """How often taken[k] is nearer to own[k] than to the `among` - 1 others drawn from own: embeddings [N, D]."""
    scores, rng = taken @ own.T, np.random.default_rng(0)
    right = 0.0
    for k in range(len(own)):
        others = np.delete(np.arange(len(own)), k)
        drawn = np.stack([rng.choice(others, among - 1, replace=False) for _ in range(draws)])
        right += float((scores[k, torch.from_numpy(drawn)].amax(1) < scores[k, k]).float().mean())
    return round(right / len(own), 3)
