"""Images: augmentation of a whole batch, splits, settings, and the sets."""

import os
from pathlib import Path
from urllib.error import URLError

import lightning as L
import numpy as np
import pytest
import torch
from hydra import compose, initialize
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from jepa.config import CONF, check_keys
from jepa.data import strong
from jepa.data.augment import N_DRAWS, Augment
from jepa.data.augmented import AugmentedBatches
from jepa.data.cifar10 import Cifar10
from jepa.data.cifar100 import Cifar100
from jepa.data.digits import Digits
from jepa.data.fashion_mnist import FashionMnist
from jepa.data.images import Collection, ImageData
from jepa.data.mixture import Mixture, fill_slots
from jepa.data.pixels import Images, Inputs, Slots, ToInput, moments, resize
from jepa.data.stl10 import Stl10
from jepa.data.torchvision_sets import open_set
from jepa.data.toy_images import ToyImages
from jepa.run import FROM_A_FILE, FROM_THE_USER

DATA = Path(os.environ.get("JEPA_DATA", "data"))
SETS = (
    *("digits", "mnist", "fashion_mnist", "cifar10", "cifar100", "stl10"),
    *("image_folder", "mixture", "toy_images"),
)
BASE = dict(
    crop_area_low=0.5,
    crop_area_high=1.0,
    crop_aspect=1.5,
    flip_share=0.5,
    brightness=0.0,
    contrast=0.0,
    saturation=0.0,
    rand_ops=0,
    rand_magnitude=9,
    three_share=0.0,
    erase_share=0.0,
    rotation=0.0,
    shear=0.0,
)
OTHER = dict(
    crop_area_low=0.2,
    crop_area_high=0.8,
    crop_aspect=1.0,
    flip_share=1.0,
    brightness=0.3,
    contrast=0.3,
    saturation=0.3,
    rand_ops=2,
    rand_magnitude=20,
    three_share=0.7,
    erase_share=0.5,
    rotation=20.0,
    shear=20.0,
)
STILL = BASE | dict(crop_area_low=1.0, crop_aspect=1.0, flip_share=0.0)


def pictures(n=12, c=3, side=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, c, side, side), generator=generator, dtype=torch.uint8)


def draws(n, seed=0, k=N_DRAWS):
    return torch.rand(n, k, generator=torch.Generator().manual_seed(seed))


def drawn(augment, n=12):
    return augment.draw(n, torch.Generator().manual_seed(0))


def unit(side=8, c=3):
    return ToInput(side, torch.zeros(c), torch.ones(c))


def batches(seed=0, **settings):
    rows = Images(pictures(), torch.arange(12))
    augment = Augment(**BASE | {"brightness": 0.2})
    return AugmentedBatches(rows, 4, augment=augment, to_input=unit(), seed=seed, **settings)


def toy(**changes):
    base = dict(n_images=60, n_channels=3, n_classes=3, image_size=8, batch_size=8)
    data = ToyImages(**base | changes)
    data.prepare()
    return data


# --- augmentation


@given(st.integers(0, 2**31), st.floats(0.01, 1.0), st.floats(1.0, 4.0))
@settings(max_examples=25, deadline=None)
def test_any_crop_of_a_constant_image_is_that_constant(seed, area, aspect):
    augment = Augment(**BASE | {"crop_area_low": area, "crop_aspect": aspect})
    x = torch.full((4, 3, 7, 7), 93, dtype=torch.uint8)
    torch.testing.assert_close(augment(x, draws(4, seed), side=9), torch.full((4, 3, 9, 9), 93.0))


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_values_stay_between_0_and_255(strength):
    jitter = dict(brightness=strength, contrast=strength, saturation=strength)
    out = Augment(**BASE | jitter)(pictures(64), draws(64), side=8)
    assert out.min() >= 0.0 and out.max() <= 255.0


def test_the_whole_image_unflipped_is_the_image():
    x = pictures()
    torch.testing.assert_close(Augment(**STILL)(x, draws(12), side=8), x.float())


def test_the_whole_image_enlarged_is_what_an_unaugmented_batch_shows():
    x = pictures(side=5)
    out = Augment(**STILL)(x, draws(12), side=9)
    torch.testing.assert_close(out, 255.0 * unit(9)(x), atol=1e-3, rtol=1e-5)


def test_a_certain_flip_mirrors_left_and_right():
    x = pictures()
    out = Augment(**STILL | {"flip_share": 1.0})(x, draws(12), side=8)
    torch.testing.assert_close(out, x.float().flip(3))


def test_flips_come_as_often_as_asked():
    x = torch.arange(8, dtype=torch.uint8).expand(2000, 1, 8, 8).clone()
    out = Augment(**STILL | {"flip_share": 0.3})(x, draws(2000), side=8)
    flipped = (out[:, 0, 0, 0] > out[:, 0, 0, -1]).double().mean().item()
    assert abs(flipped - 0.3) < 4 * (0.3 * 0.7 / 2000) ** 0.5


def test_crops_lie_inside_and_cover_the_area_asked_for_within_the_aspect():
    augment = Augment(**BASE | {"crop_area_low": 0.3, "flip_share": 0.0})
    u = draws(4000).unbind(1)
    side = 16
    grid = augment.grid(*u[:5], side=side)
    low, high = grid.amin((1, 2)), grid.amax((1, 2))
    edge = (high - low) / (side - 1)  # between pixel centres, so the crop reaches half of it on
    assert (low - edge / 2 >= -1 - 1e-5).all() and (high + edge / 2 <= 1 + 1e-5).all()
    width, height = ((high - low) * side / (side - 1) / 2).unbind(1)
    torch.testing.assert_close(width * height, 0.3 + 0.7 * u[0], atol=1e-4, rtol=1e-4)
    ratio = (width / height).log().abs()
    assert ratio.max() < np.log(1.5) + 1e-4 and ratio.max() > 0.9 * np.log(1.5)
    shift = (high + low).mean(0) / 2
    assert shift.abs().max() < 0.02  # no side is favoured


@pytest.mark.parametrize("c", [1, 3])
def test_a_batch_equals_its_images_one_by_one_under_the_same_draws(c):
    augment = Augment(**BASE | {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3})
    x, u = pictures(c=c), draws(12)
    alone = [augment(x[i : i + 1], u[i : i + 1], side=10) for i in range(12)]
    torch.testing.assert_close(augment(x, u, side=10), torch.cat(alone))


def test_saturation_zero_makes_a_grey_image_and_keeps_grey_images():
    augment = Augment(**STILL | {"saturation": 1.0})
    u = draws(12)
    u[:, -1] = 0.0  # a change by -1
    out = augment(pictures(), u, side=8)
    torch.testing.assert_close(out[:, 0], out[:, 1])
    grey = pictures(c=1)
    torch.testing.assert_close(augment(grey, draws(12), side=8), grey.float())


@pytest.mark.parametrize("knob", BASE)
def test_augment_knob_does_something(knob):
    others = {"rand_ops": 2} if knob == "rand_magnitude" else {}
    both = [Augment(**BASE | others | change) for change in ({}, {knob: OTHER[knob]})]
    outcomes = [augment(pictures(), drawn(augment), side=8) for augment in both]
    assert not torch.allclose(*outcomes)


def test_further_changes_leave_the_crops_as_they_were():
    alone, more = Augment(**BASE), Augment(**BASE | dict(erase_share=1.0, rand_ops=3, shear=9.0))
    assert torch.equal(drawn(alone), drawn(more)[:, :N_DRAWS])


def test_a_turn_by_a_right_angle_is_the_image_turned_also_where_it_is_not_square():
    augment = Augment(**STILL | {"rotation": 90.0})
    x = pictures(n=1)
    quarter = torch.cat([torch.zeros(1, N_DRAWS), torch.tensor([[1.0, 0.5]])], dim=1)
    out = augment(x, quarter, side=8)
    torch.testing.assert_close(out, x.float().rot90(1, (2, 3)), atol=1e-2, rtol=0.0)
    # an image twice as wide as high: a step along one side is half or twice one along the other
    still = augment.grid(*quarter[:, :5].T, side=8)
    x, y = augment.turned(still, *quarter[:, 8:].T, ratio=0.5).unbind(-1)
    torch.testing.assert_close(x, -0.5 * still[..., 1])
    torch.testing.assert_close(y, 2.0 * still[..., 0])


def test_turns_lean_and_rotate_by_the_largest_angle_and_keep_the_middle():
    augment = Augment(**STILL | {"rotation": 30.0, "shear": 20.0})
    ends = torch.tensor([[1.0, 0.5], [0.5, 1.0], [0.5, 0.5]])
    still = augment.grid(*torch.zeros(5, 3), side=9)
    grid = augment.turned(still, *ends.T, ratio=1.0)
    right, down = grid[:, 4, 8] - grid[:, 4, 4], grid[:, 8, 4] - grid[:, 4, 4]
    angle = torch.rad2deg(torch.atan2(right[:, 1], right[:, 0]))
    lean = torch.rad2deg(torch.atan2(down[:, 0], down[:, 1]))
    torch.testing.assert_close(angle, torch.tensor([30.0, 0.0, 0.0]))
    torch.testing.assert_close(lean, torch.tensor([-30.0, 20.0, 0.0]))
    torch.testing.assert_close(grid[:, 4, 4], still[:, 4, 4])
    torch.testing.assert_close(grid[2], still[2])


@pytest.mark.parametrize("c", [1, 3])
def test_a_strongly_changed_batch_equals_its_images_one_by_one(c):
    augment = Augment(**OTHER)
    x, u = pictures(c=c, side=16), drawn(augment)
    alone = [augment(x[i : i + 1], u[i : i + 1], side=16) for i in range(12)]
    out = augment(x, u, side=16)
    torch.testing.assert_close(out, torch.cat(alone), atol=1e-3, rtol=1e-4)
    assert out.min() >= 0.0 and out.max() <= 255.0


@pytest.mark.parametrize("name", strong.OPS)
@pytest.mark.parametrize("sign", [1, -1])
def test_an_operation_of_randaugment_is_torchvisions(name, sign):
    reference = pytest.importorskip("torchvision.transforms.autoaugment")
    x, bins = pictures(4, side=16), 31
    space = reference.RandAugment()._augmentation_space(bins, (16, 16))
    theirs = {one.lower(): one for one in space}[name.replace("_", "")]
    magnitudes, signed = space[theirs]
    magnitude = float(magnitudes[9]) if magnitudes.ndim else 0.0
    if signed:
        magnitude *= sign
    bilinear = reference.InterpolationMode.BILINEAR
    expected = reference._apply_op(x, theirs, magnitude, bilinear, None)
    out = strong.operation(name, 9, sign, 16)(x).float()
    assert (out - expected.float()).abs().max() <= 1.0  # rounding


def test_three_augment_does_one_of_three_to_the_share_that_is_asked_for():
    x = pictures(300, side=96).float()
    u = draws(300, k=3)
    out = strong.three_augment(x, u, 0.5)
    same = (out == x).flatten(1).all(1)
    gray = (out[:, 0] == out[:, 1]).flatten(1).all(1)
    solarised = (out == torch.where(x >= 128, 255 - x, x)).flatten(1).all(1)
    assert abs(same.double().mean() - 0.5) < 0.1
    for kind in (gray, solarised, ~(same | gray | solarised)):
        assert abs(kind.double().mean() - 0.5 / 3) < 0.06


def test_a_blur_keeps_a_constant_and_its_strength_is_the_images_own():
    flat = torch.full((2, 3, 32, 32), 7.0)
    torch.testing.assert_close(strong.blur(flat, torch.tensor([0.1, 2.0])), flat)
    dot = torch.zeros(2, 1, 224, 224)
    dot[:, :, 112, 112] = 1.0
    weak, strong_ = strong.blur(dot, torch.tensor([0.1, 2.0]))[:, 0, 112, 112].tolist()
    assert weak > 0.99 and strong_ == pytest.approx(1 / (2 * np.pi * 4), rel=0.02)


def test_erasing_fills_one_rectangle_of_the_area_asked_for():
    x = pictures(400, side=32).float()
    out = strong.erase(x, draws(400, k=5), 0.5)
    changed = (out != x).any(1)
    hit = changed.flatten(1).any(1)
    assert abs(hit.double().mean() - 0.5) < 0.1
    rows, columns = changed.any(2).sum(1), changed.any(1).sum(1)
    assert torch.equal(changed.flatten(1).sum(1), rows * columns)
    part = (rows * columns)[hit] / 32**2
    assert part.min() > 0.005 and part.max() < 0.4


def test_nothing_is_float64():
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **kwargs or {})
            seen.extend(o.dtype for o in [out] if isinstance(o, torch.Tensor))
            return out

    data = toy(augment=Augment(**OTHER), image_size=12)
    with Watch():
        next(iter(data.train_dataloader()))
        next(iter(data.val_dataloader()))
    assert torch.float32 in seen and torch.float64 not in seen


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("crop_area_low", 0.0),
        ("crop_area_high", 1.5),
        ("crop_area_low", float("nan")),
        ("crop_aspect", 0.5),
        ("flip_share", -0.1),
        ("contrast", 2.0),
        ("three_share", 1.5),
        ("erase_share", -0.1),
        ("rand_ops", -1),
        ("rand_magnitude", 31),
        ("rotation", -1.0),
        ("rotation", float("nan")),
        ("shear", 90.0),
    ],
)
def test_augment_refuses_what_it_cannot_do(setting, value):
    with pytest.raises(ValueError, match=setting):
        Augment(**BASE | {setting: value})


# --- batches


def test_the_same_seed_gives_the_same_batches_and_another_gives_others():
    a, b, c = list(batches()), list(batches()), list(batches(seed=1))
    assert all(torch.equal(p["x"], q["x"]) for p, q in zip(a, b, strict=True))
    assert not torch.equal(a[0]["x"], c[0]["x"])


def test_crops_differ_between_epochs_positions_and_ranks():
    same = Images(pictures(1).repeat(12, 1, 1, 1))

    def first(**place):
        augment = Augment(**BASE)
        return AugmentedBatches(same, 4, augment=augment, to_input=unit(), seed=0, **place)

    loader = first()
    one = [b["x"] for b in loader] + [b["x"] for b in loader]
    ranks = [next(iter(first(rank=rank, world_size=2)))["x"] for rank in (0, 1)]
    every = [*one, *ranks[1:]]
    assert torch.equal(one[0], ranks[0])
    assert all(not torch.equal(p, q) for i, p in enumerate(every) for q in every[:i])


@pytest.mark.parametrize("seen", [1, 2, 3, 4])
def test_a_resumed_loader_gives_the_crops_that_would_have_followed(seen):
    whole = batches()
    straight = [b["x"] for _ in range(3) for b in whole]
    stopped = batches()
    iterator = iter(stopped)
    for i in range(seen):
        if i == 3:
            iterator = iter(stopped)
        next(iterator)
    resumed = batches()
    resumed.load_state_dict(stopped.state_dict())
    rest = [b["x"] for _ in range(2) for b in resumed]
    for a, b in zip(straight[seen:], rest, strict=False):
        assert torch.equal(a, b)
    assert len(rest) >= 3


def test_the_second_view_is_another_crop_of_the_same_images_and_changes_the_first_in_nothing():
    crops = Augment(**BASE)
    loaders = (toy(augment=crops, two_views=two).train_dataloader() for two in (False, True))
    one, two = (list(loader) for loader in loaders)
    for plain, both in zip(one, two, strict=True):
        assert "view" not in plain and torch.equal(plain["x"], both["x"])
        assert both["view"].shape == both["x"].shape
        assert all(not torch.equal(a, b) for a, b in zip(both["x"], both["view"], strict=True))
    mirror = Augment(**STILL | dict(flip_share=0.5))  # each view is the image or its mirror
    for batch in toy(two_views=True, augment=mirror).train_dataloader():
        for x, view in zip(batch["x"], batch["view"], strict=True):
            assert torch.allclose(x, view, atol=1e-5) or torch.allclose(x.flip(-1), view, atol=1e-5)


def test_local_views_are_small_crops_and_change_the_others_in_nothing():
    augment = Augment(**BASE)
    settings = dict(n_local_views=3, local_size=4, local_area=(0.05, 0.1))
    plain, more = toy(augment=augment), toy(augment=augment, **settings)
    for one, other in zip(plain.train_dataloader(), more.train_dataloader(), strict=True):
        assert "local" not in one and torch.equal(one["x"], other["x"])
        local = other["local"]
        assert local.shape == (8, 3, 3, 4, 4)
        assert not torch.equal(local[:, 0], local[:, 1])
    assert (more.spec.n_local_views, more.spec.local_size) == (3, 4)
    ramp = torch.arange(64, dtype=torch.uint8).expand(200, 1, 64, 64).clone()
    seen = augment(ramp, draws(200), side=8, area=(0.05, 0.1))[:, 0, 0]
    assert (seen.amax(1) - seen.amin(1)).max() < 64 * (0.1 * 1.5) ** 0.5


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (dict(n_local_views=-1), "data.n_local_views"),
        (dict(n_local_views=1, local_size=0), "data.local_size"),
        (dict(n_local_views=1, local_area=(0.5, 0.1)), "data.local_area"),
        (dict(n_local_views=1, augment=None), "augment=plain"),
    ],
)
def test_local_views_that_cannot_be_are_refused(setting, words):
    with pytest.raises(ValueError, match=words):
        toy(**dict(augment=Augment(**BASE)) | setting)


@pytest.mark.parametrize("augment", [None, Augment(**STILL)])
def test_two_views_without_an_augmentation_are_refused(augment):
    with pytest.raises(ValueError, match=r"data\.two_views=true.*augment=plain"):
        toy(two_views=True, augment=augment)


def test_augmentation_touches_no_global_randomness():
    before = torch.get_rng_state()
    list(batches())
    assert torch.equal(before, torch.get_rng_state())


def test_validation_and_probes_see_whole_images_in_order():
    data = toy(augment=Augment(**OTHER))
    val = torch.cat([b["x"] for b in data.val_dataloader()])
    probed = torch.cat([b["x"] for b in data.probe_batches("val")])
    assert torch.equal(val, probed)
    pixels = data.splits["val"].pixels.x
    mean, std = (torch.tensor(v)[:, None, None] for v in (data.spec.mean, data.spec.std))
    torch.testing.assert_close(val, (pixels / 255.0 - mean) / std)


def test_without_augmentation_training_sees_the_same_inputs_as_a_probe():
    data = toy(augment=None)
    train = torch.cat([b["x"] for b in data.train_dataloader()])
    known = {tuple(x.flatten().tolist()) for x in data.splits["train"].take(torch.arange(42))["x"]}
    assert all(tuple(x.flatten().tolist()) in known for x in train)


# --- pixels


def test_moments_equal_torch():
    x = pictures(40)
    mean, std = moments(x)
    reference = x.double() / 255.0
    torch.testing.assert_close(torch.tensor(mean).double(), reference.mean((0, 2, 3)))
    torch.testing.assert_close(torch.tensor(std).double(), reference.std((0, 2, 3), correction=0))


def test_a_flat_channel_has_a_finite_scale():
    assert moments(torch.full((3, 1, 2, 2), 7, dtype=torch.uint8))[1] == (1 / 255,)


def test_resizing_there_and_back_keeps_a_constant_and_the_number():
    x = torch.full((3, 1, 4, 4), 200, dtype=torch.uint8)
    assert torch.equal(resize(resize(x, 9), 4), x)


def test_shrinking_averages():
    checker = (torch.arange(8)[:, None] + torch.arange(8)).remainder(2).mul(255).to(torch.uint8)
    small = resize(checker[None, None], 2).float()
    assert (small - 127.5).abs().max() < 20  # every second pixel alone would give 0 or 255


def test_images_and_inputs_are_samples():
    from jepa.data.batches import Samples

    images = Images(pictures())
    for one in (images, Inputs(images, unit()), Slots(images, torch.arange(3))):
        assert isinstance(one, Samples)
        assert "y" not in one.take(torch.tensor([0])) and one.to(torch.device("cpu")).device


# --- settings

SETTINGS = dict(
    image_size=12,
    batch_size=4,
    augment=Augment(**OTHER),
    normalize=False,
    val_share=0.3,
    test_share=0.4,
    split_seed=1,
    seed=1,
)


def shown(**changes):
    """Everything that a run sees of the data."""
    data = toy(**changes)
    train = [b["x"] for b in data.train_dataloader()]
    rest = [b["x"] for loader in (data.val_dataloader(), data.test_dataloader()) for b in loader]
    return [(tuple(x.shape), x.double().sum().item()) for x in (*train, *rest)]


@pytest.mark.parametrize("knob", SETTINGS)
def test_image_setting_does_something(knob):
    assert shown(**{knob: SETTINGS[knob]}) != shown()


@pytest.mark.parametrize("knob", ["n_images", "n_channels", "n_classes", "draw_seed"])
def test_toy_setting_does_something(knob):
    other = {"n_images": 48, "n_channels": 1, "n_classes": 2, "draw_seed": 1}[knob]
    assert shown(**{knob: other}) != shown()


def test_effective_batch_size_is_kept_for_the_trainer():
    assert toy(effective_batch_size=16).effective_batch_size == 16


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("image_size", 0),
        ("batch_size", 0),
        ("n_workers", 0),
        ("val_share", 1.0),
        ("test_share", -0.5),
        ("n_channels", 2),
        ("n_classes", 1),
        ("batch_size", 1000),
    ],
)
def test_bad_settings_are_refused_by_name(setting, value):
    with pytest.raises(ValueError, match=f"data.{setting}"):
        toy(**{setting: value})


def test_splits_share_no_image_and_keep_the_classes_shares():
    data = toy()
    parts = {name: split.pixels for name, split in data.splits.items()}
    assert list(parts) == ["train", "val", "test"]
    rows = [tuple(x.flatten().tolist()) for part in parts.values() for x in part.x]
    assert len(rows) == len(set(rows)) == 60
    assert all(part.y.bincount(minlength=3).float().std() < 1.0 for part in parts.values())


def test_a_published_split_is_kept_and_its_share_refused():
    class Published(ToyImages):
        def load(self):
            whole = super().load()
            x, y = whole.splits["train"].x, whole.splits["train"].y
            halves = {"train": Images(x[:40], y[:40]), "test": Images(x[40:], y[40:])}
            return Collection(splits=halves, classes=whole.classes)

    make = dict(n_images=60, n_channels=1, n_classes=2, image_size=4, batch_size=4)
    data = Published(**make)
    data.prepare()
    assert {name: len(part) for name, part in data.splits.items()} == {
        "train": 36,
        "val": 4,
        "test": 20,
    }
    with pytest.raises(ValueError, match=r"data.test_share=0.5 has no effect"):
        Published(**make, test_share=0.5).prepare()


def test_describe_names_size_classes_and_counts():
    text = toy(image_size=8).describe()
    assert "8 x 8 x 3" in text and "3 classes" in text and "train 42" in text
    data = Digits(image_size=16, batch_size=8)
    data.prepare()
    assert "16 x 16 x 1, enlarged from 8 x 8" in data.describe()


def test_digits_are_enlarged_and_grey():
    data = Digits(image_size=16, batch_size=8)
    data.prepare()
    assert data.spec.n_channels == 1 and data.spec.n_classes == 10
    assert data.splits["train"].pixels.x.shape[1:] == (1, 8, 8)
    assert next(iter(data.train_dataloader()))["x"].shape == (8, 1, 16, 16)
    assert sum(len(part) for part in data.splits.values()) == 1797


def test_larger_images_are_shrunk_once():
    data = Digits(image_size=4, batch_size=8)
    data.prepare()
    assert data.splits["train"].pixels.x.shape[1:] == (1, 4, 4)


def test_a_trainer_feeds_a_model_with_augmented_batches():
    class Watch(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.seen = []

        def training_step(self, batch, batch_idx):
            self.seen.append(batch["x"].clone())
            return (self.weight * batch["x"]).mean()

        def validation_step(self, batch, batch_idx):
            assert batch["y"].dtype == torch.int64

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    data, model = toy(augment=Augment(**BASE)), Watch()
    L.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(model, data)
    plain = toy(augment=Augment(**BASE)).train_dataloader()
    straight = [b["x"] for _ in range(2) for b in plain]
    assert len(model.seen) == len(straight) == 10
    assert all(torch.equal(a, b) for a, b in zip(model.seen, straight, strict=True))


# --- mixture and unlabeled images


def small_set(n, c, side, unlabeled=0, stamp=""):
    class Small(ImageData):
        def load(self):
            y = torch.arange(n) % 2
            more = Images(pictures(unlabeled, c, side)) if unlabeled else None
            return Collection(
                splits={"train": Images(pictures(n, c, side), y)},
                classes=("a", "b"),
                unlabeled=more,
                stamp=stamp,
            )

    return Small


def mixed(**changes):
    sets = {"first": small_set(20, 1, 6, stamp="copy"), "second": small_set(10, 3, 12, 50)}
    base = dict(sets=sets, weights={"first": 0.25, "second": 0.75}, image_size=8, batch_size=4)
    data = Mixture(**base | changes)
    data.prepare()
    return data


def test_mixture_has_the_first_sets_splits_and_every_sets_images():
    data = mixed()
    assert {name: len(part) for name, part in data.splits.items()} == {
        "train": 14,
        "val": 2,
        "test": 4,
    }
    assert data.splits["val"].pixels.x.shape[1:] == (3, 8, 8)
    assert data.stamp == "first: copy" and data.spec.n_channels == 3
    images = data.training_images()
    assert len(images.images) == 14 + 50
    assert "y" not in next(iter(data.train_dataloader()))
    grey = images.take(torch.arange(len(images)))["x"]
    share = (grey[:, 0] == grey[:, 1]).all(-1).all(-1).double().mean().item()
    assert abs(share - 0.25) < 0.01


@given(
    st.lists(st.tuples(st.integers(1, 30), st.floats(0.05, 1.0)), min_size=2, max_size=4),
)
@settings(max_examples=40, deadline=None)
def test_mixture_shows_sets_by_weight_and_images_alike(pairs):
    sizes, weights = (list(one) for one in zip(*pairs, strict=True))
    counts = fill_slots(sizes, weights).bincount(minlength=sum(sizes)).split(sizes)
    total = sum(int(part.sum()) for part in counts)
    for part, weight in zip(counts, weights, strict=True):
        assert part.max() - part.min() <= 1 and part.max() >= 1
        assert abs(int(part.sum()) - total * weight / sum(weights)) <= len(sizes)
    assert any(part.max() == 1 for part in counts)


@pytest.mark.parametrize("change", [{"weights": {"first": 0.9, "second": 0.1}}, {"image_size": 6}])
def test_mixture_settings_do_something(change):
    a, b = mixed(), mixed(**change)
    same = len(a.training_images()) == len(b.training_images())
    assert not (same and a.splits["val"].pixels.x.shape == b.splits["val"].pixels.x.shape)


@pytest.mark.parametrize("weights", [{"first": 1.0}, {"first": 0.0, "second": 1.0}])
def test_mixture_refuses_weights_that_do_not_fit(weights):
    with pytest.raises(ValueError, match=r"data\.weights"):
        mixed(weights=weights)


def test_a_set_with_unlabeled_images_pretrains_on_them_and_probes_on_the_others():
    data = small_set(20, 3, 8, 30)(image_size=8, batch_size=10)
    data.prepare()
    assert len(data.train_dataloader()) == 3 and "y" in next(data.probe_batches("train"))
    assert "pretraining without labels 30" in data.describe()


@pytest.mark.parametrize("unlabeled", [True, False])
def test_stl10_reads_what_torchvision_gives(monkeypatch, unlabeled, tmp_path):
    torchvision = pytest.importorskip("torchvision")

    class Fake:
        def __init__(self, root, split, download):
            assert not download
            n = {"train": 20, "test": 10, "unlabeled": 100_000}[split]
            self.data = np.zeros((n, 3, 1, 1), np.uint8)
            self.labels = np.arange(n) % 10

    monkeypatch.setattr(torchvision.datasets, "STL10", Fake)
    monkeypatch.setattr(Stl10, "card", None)
    (tmp_path / "stl10_binary").mkdir()
    data = Stl10(
        data_dir=str(tmp_path), unlabeled=unlabeled, image_size=1, batch_size=2, val_share=0.5
    )
    data.prepare()
    assert len(data.training_images()) == (100_000 if unlabeled else 10)
    assert data.spec.classes[2] == "car"


@pytest.mark.parametrize(("build", "name"), [(Cifar10, "CIFAR10"), (Cifar100, "CIFAR100")])
def test_cifar_reads_what_torchvision_gives(monkeypatch, build, name, tmp_path):
    torchvision = pytest.importorskip("torchvision")
    shape = (20, 32, 32, 3)  # height, width, channel
    whole = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

    class Fake:
        classes = tuple("abcdefghij")

        def __init__(self, root, train, download):
            self.data, self.targets = whole, [i % 10 for i in range(20)]

    monkeypatch.setattr(torchvision.datasets, name, Fake)
    monkeypatch.setattr(build, "_check_card", lambda *_: None)
    data = build(data_dir=str(tmp_path), image_size=32, batch_size=2, val_share=0)
    data.prepare()
    x = data.splits["test"].pixels.x
    assert torch.equal(x.permute(0, 2, 3, 1), torch.from_numpy(whole)) and data.stamp == ""


def test_a_set_that_is_absent_names_every_place_looked_at(tmp_path):
    def offline(root, download):
        assert download
        raise URLError("no network")

    with pytest.raises(FileNotFoundError, match=r"one.*two.*JEPA_DATA"):
        open_set(offline, [tmp_path / "one", tmp_path / "two"], "folder")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_crops():
    augment = Augment(**OTHER)
    rows, to_input, gpu = Images(pictures()), unit(12), torch.device("cuda")
    cpu, cuda = (
        AugmentedBatches(rows.to(d), 4, augment=augment, to_input=to_input.to(d), seed=0)
        for d in (torch.device("cpu"), gpu)
    )
    for a, b in zip(cpu, cuda, strict=True):
        torch.testing.assert_close(a["x"], b["x"].cpu(), atol=1e-4, rtol=1e-4)


# --- configuration


def composed(*overrides):
    with initialize(config_path="../conf"):
        return compose(
            "config",
            overrides=["run_dir=unused", "study=unused", "probe_name=ridge", *overrides],
        )


@pytest.mark.parametrize("name", SETS)
def test_every_image_set_takes_the_same_keys(name):
    cfg = composed(f"data={name}")
    check_keys(cfg, "config")
    assert {
        *("image_size", "batch_size", "effective_batch_size", "n_workers", "augment"),
        *(
            "n_local_views",
            "local_size",
            "local_area",
            "two_views",
            "normalize",
            "val_share",
            "test_share",
            "split_seed",
            "seed",
        ),
    } <= set(cfg.data)


@pytest.mark.parametrize("augment", sorted(p.stem for p in (CONF / "augment").glob("*.yaml")))
def test_augment_is_chosen_at_the_top(augment):
    cfg = composed("data=digits", f"augment={augment}")
    check_keys(cfg, "config")
    with FROM_THE_USER:
        data = instantiate(cfg.data)
    assert isinstance(data.augment, Augment)
    still = data.augment.area == (1.0, 1.0) and data.augment.flip_share == 0.0
    assert still == (augment == "none")


def test_tables_have_no_augmentation_to_set():
    assert "augment" not in composed("data=digits_table")


def test_the_mixture_of_the_yaml_is_cifar10_and_stl10(tmp_path):
    with FROM_THE_USER:
        data = instantiate(composed("data=mixture", f"paths.data_dir={tmp_path}").data)
    assert isinstance(data.members["cifar10"], Cifar10)
    assert isinstance(data.members["stl10"], Stl10)
    assert data.weights == {"cifar10": 0.5, "stl10": 0.5}


def test_a_checkpoints_config_can_rebuild_the_data():
    cfg = OmegaConf.create(OmegaConf.to_container(composed("data=digits").data, resolve=True))
    with FROM_A_FILE:
        assert isinstance(instantiate(cfg).augment, Augment)


# --- the published sets


def published(build, place, **settings):
    if not (DATA / place).exists():
        pytest.skip(f"{place} is not below JEPA_DATA={DATA}")
    data = build(data_dir=str(DATA), batch_size=64, **settings)
    data.prepare()
    return data


@pytest.mark.slow
@pytest.mark.ci
def test_fashion_mnist_has_its_images_and_classes():
    data = published(FashionMnist, "fashion_mnist", image_size=28)
    assert {name: len(part) for name, part in data.splits.items()} == {
        "train": 54_000,
        "val": 6_000,
        "test": 10_000,
    }
    assert data.spec.n_channels == 1 and data.spec.classes[9] == "Ankle boot"
    assert data.splits["test"].pixels.y.bincount().tolist() == [1000] * 10
    assert abs(data.spec.mean[0] - 0.2860) < 1e-3 and abs(data.spec.std[0] - 0.3530) < 1e-3
    assert data.stamp == ""


@pytest.mark.slow
@pytest.mark.ci
def test_cifar10_from_jpeg_is_stamped_and_near_the_originals():
    from PIL import Image

    data = published(Cifar10, "cifar10/cifar10_jpeg_q75.tar.xz", image_size=32)
    if not data.stamp:
        pytest.skip("the originals are there")
    assert data.stamp == "JPEG q75" and "JPEG q75" in data.describe()
    assert {name: len(part) for name, part in data.splits.items()} == {
        "train": 45_000,
        "val": 5_000,
        "test": 10_000,
    }
    assert data.splits["test"].pixels.y.bincount().tolist() == [1000] * 10
    assert data.spec.classes[0] == "airplane" and data.spec.classes[9] == "truck"
    sheet = DATA / "cifar10" / "cifar10_batch_0.png"
    if sheet.exists():  # 1,000 originals; each is near one of the copies
        originals = np.asarray(Image.open(sheet).convert("RGB")).reshape(1000, 32, 32, 3)
        first = torch.from_numpy(originals[:20].copy()).permute(0, 3, 1, 2).flatten(1).float()
        pools = [data.splits[name].pixels.x.flatten(1) for name in ("train", "val")]
        near = [torch.cdist(first, pool.float()).min(1).values for pool in pools]
        rms = torch.minimum(*near) / 3072**0.5
        psnr = 20 * torch.log10(255.0 / rms)
        assert psnr.min() > 24 and abs(psnr.mean() - 30) < 3
