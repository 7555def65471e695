"""Masks of images: what must hold on every grid."""

import math
from collections import Counter

import pytest
import torch
from omegaconf import OmegaConf

from jepa.config import CONF
from jepa.nn.blocks import Blocks, Masking, MultiBlock, MultiBlockOfficial, RandomPatches

SHARES = dict(
    target_share_low=0.15,
    target_share_width=0.05,
    aspect_ratio_low=0.75,
    aspect_ratio_high=1.5,
    window_share_low=0.85,
    window_share_width=0.15,
)
CLASSES = {c.__name__: c for c in (MultiBlock, MultiBlockOfficial, RandomPatches)}


def multiblock(**changes):
    return MultiBlock(**{**SHARES, "n_targets": 3, "context_share": 0.4} | changes)


def official(**changes):
    return MultiBlockOfficial(**{**SHARES, "n_targets": 4, "min_keep": 4} | changes)


def shipped(option):
    """The masking of a yaml, without Hydra."""
    settings = dict(OmegaConf.load(CONF / "masking" / f"{option}.yaml"))
    return CLASSES[settings.pop("_target_").rpartition(".")[2]](**settings)


def draw(masking, grid, *, batch=16, seed=0) -> Blocks:
    masking.check(grid)
    counts, places = (torch.Generator().manual_seed(s) for s in (seed, seed + 1000))
    return masking.draw(batch, grid, counts=counts, places=places)


def overlaps(blocks):
    return [
        bool(set(seen.tolist()) & set(hidden.flatten().tolist()))
        for seen, hidden in zip(blocks.context, blocks.targets, strict=True)
    ]


def options():
    return sorted(path.stem for path in (CONF / "masking").glob("*.yaml"))


@pytest.mark.parametrize("option", options())
def test_every_shipped_masking_fits_the_default_grid(option):
    masking = shipped(option)
    assert isinstance(masking, Masking)
    for seed in range(5):
        blocks = draw(masking, (8, 8), seed=seed)
        assert blocks.shape in masking.shapes((8, 8))
        assert blocks.targets.shape[2] == math.prod(blocks.shape)
        assert not any(overlaps(blocks))
        assert (blocks.context.diff(dim=1) > 0).all()


@pytest.mark.parametrize("n_targets", range(1, 7))
@pytest.mark.parametrize("side", range(2, 17))
def test_multiblock_ends_on_every_grid_with_one_context_count(side, n_targets):
    for grid in ((side, side), (side, 17 - side if side < 15 else 2)):
        masking = multiblock(n_targets=n_targets)
        blocks = [draw(masking, grid, batch=8, seed=seed) for seed in range(2)]
        n_context = max(1, round(0.4 * grid[0] * grid[1]))
        for one in blocks:
            assert one.context.shape == (8, n_context) and not any(overlaps(one))
            assert one.targets.min() >= 0 and one.targets.max() < grid[0] * grid[1]


def test_blocks_are_rectangles_in_raster_order():
    blocks = draw(multiblock(), (6, 9))
    height, width = blocks.shape
    for target in blocks.targets.flatten(0, 1):
        cells = [(int(i) // 9, int(i) % 9) for i in target]
        top, left = cells[0]
        assert cells == [(top + y, left + x) for y in range(height) for x in range(width)]


def test_every_row_and_column_is_seen_and_predicted_alike():
    seen, hidden = torch.zeros(64), torch.zeros(64)
    masking = multiblock()
    for seed in range(40):
        blocks = draw(masking, (8, 8), batch=64, seed=seed)
        seen += torch.bincount(blocks.context.flatten(), minlength=64)
        hidden += torch.bincount(blocks.targets.flatten(), minlength=64)
    for counts in (seen.view(8, 8), hidden.view(8, 8)):
        assert counts.min() > 0
        for axis in (0, 1):
            profile = counts.sum(axis)
            assert ((profile - profile.flip(0)).abs() < 0.12 * profile).all()


def test_a_context_that_hardly_fits_is_found_all_the_same():
    masking = multiblock(context_share=0.75, n_targets=6)
    for seed in range(20):
        blocks = draw(masking, (8, 8), batch=32, seed=seed)
        assert blocks.context.shape == (32, 48) and not any(overlaps(blocks))


def test_the_context_lies_in_the_window_where_there_is_room():
    masking = multiblock(
        n_targets=1, context_share=0.1, window_share_low=0.25, window_share_width=0.0
    )
    for context in draw(masking, (8, 8), batch=64).context:
        rows, columns = context // 8, context % 8
        assert rows.max() - rows.min() < 4 and columns.max() - columns.min() < 4


def test_the_same_generators_give_the_same_masks_and_others_do_not():
    first, again, other = (draw(multiblock(), (8, 8), seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.context, again.context) and torch.equal(first.targets, again.targets)
    assert not torch.equal(first.context, other.context)


def test_ranks_share_shapes_and_not_places():
    masking = multiblock()
    for seed in range(8):
        ranks = [
            masking.draw(
                4,
                (14, 14),
                counts=torch.Generator().manual_seed(seed),
                places=torch.Generator().manual_seed(100 * rank + seed),
            )
            for rank in (1, 2)
        ]
        assert ranks[0].shape == ranks[1].shape
        assert not torch.equal(ranks[0].targets, ranks[1].targets)


def test_shapes_on_known_grids_are_those_of_the_shares():
    assert multiblock().shapes((8, 8)) == {(3, 3), (3, 4), (4, 3), (4, 4)}
    # the authors' code draws these five at 224 pixels with patches of 16
    assert official().shapes((14, 14)) == {(5, 6), (6, 5), (6, 6), (7, 5), (8, 5)}


def test_official_masks_have_the_faults_of_the_original():
    seen, hidden = torch.zeros(196), torch.zeros(196)
    for seed in range(20):
        blocks = draw(official(min_keep=10), (14, 14), batch=64, seed=seed)
        seen += torch.bincount(blocks.context.flatten(), minlength=196)
        hidden += torch.bincount(blocks.targets.flatten(), minlength=196)
    seen, hidden = seen.view(14, 14), hidden.view(14, 14)
    assert not seen[-1].any() and not seen[:, -1].any() and not hidden[-1].any()
    assert seen[0].sum() > 20 * seen[-2].sum()


def test_official_context_count_differs_from_batch_to_batch():
    counts = Counter(draw(official(), (8, 8), seed=s).context.shape[1] for s in range(12))
    assert len(counts) > 1 and min(counts) > 4


def test_random_patches_are_disjoint_and_cover_every_patch():
    blocks = draw(RandomPatches(target_share=0.5, context_share=0.5), (4, 4), batch=8)
    for seen, hidden in zip(blocks.context, blocks.targets, strict=True):
        assert sorted([*seen.tolist(), *hidden.flatten().tolist()]) == list(range(16))


@pytest.mark.parametrize(
    ("masking", "grid"),
    [
        (multiblock(context_share=0.9), (8, 8)),
        (multiblock(context_share=1.0), (2, 2)),
        (multiblock(target_share_low=0.9, target_share_width=0.05), (8, 8)),
        (official(min_keep=10), (8, 8)),  # the authors' code never ends here
        (official(min_keep=0), (2, 2)),
        (RandomPatches(target_share=0.6, context_share=0.6), (8, 8)),
    ],
)
def test_masks_that_leave_no_context_are_refused_with_the_grid_and_a_fix(masking, grid):
    with pytest.raises(ValueError, match=rf"no context on a grid of {grid[0]} x {grid[1]}.*take"):
        masking.check(grid)


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("masking.n_targets", dict(n_targets=0)),
        ("masking.target_share", dict(target_share_low=0.0)),
        ("masking.target_share", dict(target_share_low=1.0, target_share_width=0.0)),
        ("masking.aspect_ratio_low", dict(aspect_ratio_low=2.0)),
        ("masking.aspect_ratio_low", dict(aspect_ratio_low=0.0)),
        ("masking.window_share", dict(window_share_low=1.5)),
        ("masking.context_share", dict(context_share=0.0)),
    ],
)
def test_settings_out_of_range_are_refused_by_their_key(key, changes):
    with pytest.raises(ValueError, match=key):
        multiblock(**changes)


@pytest.mark.parametrize(
    ("make", "knob", "value"),
    [
        (multiblock, "n_targets", 2),
        (multiblock, "target_share_low", 0.3),
        (multiblock, "target_share_width", 0.4),
        (multiblock, "aspect_ratio_low", 0.2),
        (multiblock, "aspect_ratio_high", 5.0),
        (multiblock, "window_share_low", 0.5),
        (multiblock, "window_share_width", 0.0),
        (multiblock, "context_share", 0.2),
        (official, "n_targets", 2),
        (official, "target_share_low", 0.3),
        (official, "target_share_width", 0.4),
        (official, "aspect_ratio_low", 0.2),
        (official, "aspect_ratio_high", 5.0),
        (official, "window_share_low", 0.5),
        (official, "window_share_width", 0.0),
        (official, "min_keep", 25),
    ],
)
def test_every_knob_of_the_masks_does_something(make, knob, value):
    def outcome(masking):
        drawn = [draw(masking, (14, 14), batch=16, seed=seed) for seed in range(6)]
        return [(b.shape, b.context.tolist(), b.targets.tolist()) for b in drawn]

    # the square of the original is cut below the grid, so only small shares of it can be seen;
    # and few blocks leave enough in any case
    others = {"window_share_width": {"window_share_low": 0.5}, "min_keep": {"n_targets": 8}}
    others = others.get(knob, {})
    assert outcome(make(**others)) != outcome(make(**others | {knob: value}))


@pytest.mark.parametrize("knob", ["target_share", "context_share"])
def test_every_knob_of_random_patches_does_something(knob):
    base = dict(target_share=0.4, context_share=0.4)
    plain, other = (draw(RandomPatches(**base | change), (8, 8)) for change in ({}, {knob: 0.2}))
    assert (plain.context.shape, plain.targets.shape) != (other.context.shape, other.targets.shape)
