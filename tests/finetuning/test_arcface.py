"""ArcFace: cases worked by hand, a plain form in float64, and gradients where the angle has none."""

import math

import pytest
import torch
from torch.nn import functional as F

from ecgfast.errors import EcgfastError
from ecgfast.finetuning.arcface import arcface_logits, check_arcface, unit_vectors


def test_by_hand():
    """Directions at 0 and 90 degrees, of norms 2 and 1, both embeddings of the first; scale 10.

    Row 0 stands at 60 degrees, of norm 3. With a margin of 30 degrees the own logit is 10 cos 90 = 0, the
    other 10 cos 30. Row 1 stands at 170 degrees, past 180 - 30: the own logit is
    10 (cos 170 - pi/6 sin 30) = 10 (cos 170 - pi/12), the other 10 cos 80.
    """
    directions = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    angles = torch.tensor([60.0, 170.0]).deg2rad()
    embeddings = torch.stack([angles.cos(), angles.sin()], dim=1) * torch.tensor([[3.0], [1.0]])
    logits, cosines = arcface_logits(
        embeddings, directions, torch.tensor([0, 0]), scale=10.0, margin=math.pi / 6
    )
    cos = [[0.5, math.sqrt(3) / 2], [math.cos(math.radians(170)), math.cos(math.radians(80))]]
    assert cosines == pytest.approx(torch.tensor(cos), abs=1e-6)
    own = [0.0, 10 * (cos[1][0] - math.pi / 12)]
    assert logits[:, 0].tolist() == pytest.approx(own, abs=1e-5)
    assert logits[:, 1].tolist() == pytest.approx([10 * cos[0][1], 10 * cos[1][1]], abs=1e-5)
    # ln(e^0 + e^8.6603) of row 0
    loss = F.cross_entropy(logits[:1], torch.tensor([0])).item()
    assert loss == pytest.approx(math.log(1 + math.exp(10 * cos[0][1])), rel=1e-6)


def plain(embeddings, directions, classes, scale, margin):
    """The definition by angles, in float64."""
    cos = F.normalize(embeddings.double(), dim=1) @ F.normalize(directions.double(), dim=1).T
    theta = cos.clamp(-1, 1).arccos()
    past = theta >= math.pi - margin
    own = torch.where(past, cos - margin * math.sin(margin), (theta + margin).cos())
    is_own = F.one_hot(classes, len(directions)).bool()
    return scale * torch.where(is_own, own, cos)


@pytest.mark.parametrize("margin", [0.0, 0.5, 1.0, 2.5])
def test_plain_form(margin):
    generator = torch.Generator().manual_seed(0)
    embeddings, directions = torch.randn(200, 3, generator=generator), torch.randn(7, 3, generator=generator)
    classes = torch.randint(7, (200,), generator=generator)
    want = plain(embeddings, directions, classes, 192.0, margin)
    wide, _ = arcface_logits(embeddings.double(), directions.double(), classes, scale=192.0, margin=margin)
    torch.testing.assert_close(wide, want, rtol=0, atol=1e-9)
    narrow, _ = arcface_logits(embeddings, directions, classes, scale=192.0, margin=margin)
    torch.testing.assert_close(narrow.double(), want, rtol=0, atol=2e-4)


def test_small_angles_keep_their_digits():
    """At 1e-4 the cosine is 1 - 5e-9, in float32 1: 1 - cos^2 is lost, and with it 0.016 of the logit."""
    angle = torch.tensor([1e-4], dtype=torch.float64)
    embeddings = torch.stack([angle.cos(), angle.sin()], dim=1).float()
    logits, _ = arcface_logits(embeddings, torch.eye(2), torch.tensor([0]), scale=192.0, margin=1.0)
    assert logits[0, 0].item() == pytest.approx(192 * math.cos(1 + 1e-4), abs=1e-3)


def test_gradients_also_where_the_cosine_is_one():
    """Rows on the own direction, opposite to it, and anywhere; powers of two, so that the norms are exact."""
    directions = torch.tensor([[1.0, 0, 0], [0, 2.0, 0], [0.3, -0.4, 1.2]], dtype=torch.float64)
    embeddings = torch.tensor([[4.0, 0, 0], [-4.0, 0, 0], [0, 0.5, 0], [0.2, 0.9, -0.7]], dtype=torch.float64)
    classes = torch.tensor([0, 0, 1, 2])
    directions.requires_grad_(True)
    embeddings.requires_grad_(True)

    def loss(embeddings, directions):
        logits, _ = arcface_logits(embeddings, directions, classes, scale=8.0, margin=1.0)
        return F.cross_entropy(logits, classes, reduction="none")

    assert torch.autograd.gradcheck(loss, (embeddings, directions), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_finite(dtype):
    own = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 1e-20], [0.0, 0.0]], dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        classes = torch.zeros(4, dtype=torch.int64)
        logits, _ = arcface_logits(own, torch.eye(2), classes, scale=192.0, margin=1.0)
    assert logits.dtype == torch.float32
    logits.sum().backward()
    assert own.grad.isfinite().all()
    assert unit_vectors(own)[3].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("scale", "margin", "message"),
    [
        (0.0, 1.0, "arcface_scale: must be a positive number, got 0.0"),
        (1.0, 3.2, "arcface_margin: must be an angle from 0 to below pi, got 3.2"),
        (1.0, -0.1, "arcface_margin: must be"),
    ],
)
def test_bad_settings(scale, margin, message):
    with pytest.raises(EcgfastError, match=message):
        check_arcface(scale, margin)
