import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.masks import bounding_box
from workbench.volume import (
    Refused,
    Source,
    Volume,
    canonical_affine,
    resample,
    resample_labels,
    resample_part,
    same_grid,
    shape_at,
)


def volume(shape=(2, 3, 4), spacing=(5.0, 2.0, 1.0), name="a"):
    return Volume(torch.zeros(shape), spacing, canonical_affine(spacing), name)


def test_voxel_volume_in_ml():
    assert volume().voxel_ml == pytest.approx(0.01)


@pytest.mark.parametrize("spacing", [(0.0, 1.0, 1.0), (1.0, -1.0, 1.0), (1.0, 1.0, float("nan"))])
def test_spacing_that_is_none_is_refused(spacing):
    with pytest.raises(Refused, match="three positive lengths"):
        volume(spacing=spacing)


def test_four_dimensions_are_refused():
    with pytest.raises(Refused, match="found 4 dimensions"):
        Volume(torch.zeros(1, 2, 3, 4), (1, 1, 1), np.eye(4))


def test_refusal_is_one_line():
    assert "\n" not in str(Refused("a\nfile", "x\n", "y", "do\nthis"))


def test_source_order_round_trip():
    array = np.arange(24).reshape(2, 3, 4)  # z y x
    source = Source("f", (4, 3, 2), np.eye(4), (2, 1, 0), (0,))
    stored = source.to_file_order(array)
    assert stored.shape == (4, 3, 2)
    assert stored[0, 0, 0] == array[0, 0, 3]
    assert np.array_equal(source.to_canonical(stored), array)


def test_file_order_is_simpleitk_s():
    array = torch.arange(24).reshape(2, 3, 4)
    source = Source("f", (4, 3, 2), np.eye(4), (2, 1, 0), (0, 1))
    seen, spacing = Volume(array, (5.0, 2.0, 1.0), np.eye(4), "v", source).in_file_order()
    assert spacing == (5.0, 2.0, 1.0) and torch.equal(seen, array.flip(1, 2))
    turned = Source("f", (2, 3, 4), np.eye(4), (0, 1, 2), ())  # a file whose first axis is the body's
    seen, spacing = Volume(array, (5.0, 2.0, 1.0), np.eye(4), "v", turned).in_file_order()
    assert seen.shape == (4, 3, 2) and spacing == (1.0, 2.0, 5.0)
    assert volume().in_file_order()[1] == (5.0, 2.0, 1.0)


def test_same_grid_names_the_numbers():
    with pytest.raises(Refused, match=r"\(2, 3, 5\)"):
        same_grid(volume(), volume((2, 3, 5), name="b"))
    moved = Volume(torch.zeros(2, 3, 4), (5.0, 2.0, 1.0), canonical_affine((5.0, 2.0, 1.1)), "b")
    with pytest.raises(Refused, match="voxels 0.4 mm away"):
        same_grid(volume(), moved)
    same_grid(volume(), volume(name="b"))


def test_resample_halves_and_doubles_by_hand():
    ramp = torch.arange(12.0).expand(2, 3, 12)
    assert resample(ramp, (2, 3, 6))[0, 0, 1:-1].tolist() == pytest.approx([2.5, 4.5, 6.5, 8.5])
    assert resample(ramp, (2, 3, 24))[1, 2, 1:5].tolist() == pytest.approx([0.25, 0.75, 1.25, 1.75])


def test_resample_does_not_alias():
    stripes = torch.tensor([0.0, 1.0]).repeat(50).expand(2, 2, 100)
    assert (resample(stripes, (2, 2, 20))[..., 1:-1] - 0.5).abs().max() < 0.05


@settings(max_examples=25, deadline=None)
@given(st.tuples(*[st.integers(1, 9)] * 3), st.tuples(*[st.integers(1, 9)] * 3), st.floats(-1000, 3000))
def test_resample_keeps_a_constant_and_the_range(old, new, value):
    assert torch.allclose(resample(torch.full(old, value), new), torch.tensor(value), rtol=1e-5, atol=1e-3)
    random = torch.rand(old)
    out = resample(random, new)
    assert out.shape == new
    assert out.min() >= random.min() - 1e-5 and out.max() <= random.max() + 1e-5


@settings(max_examples=25, deadline=None)
@given(st.tuples(*[st.integers(1, 8)] * 3), st.tuples(*[st.integers(1, 8)] * 3))
def test_labels_are_never_mixed(old, new):
    labels = torch.randint(0, 3, old, dtype=torch.uint8)
    assert set(resample_labels(labels, new).unique().tolist()) <= set(labels.unique().tolist())


def test_labels_take_the_voxel_that_holds_the_new_centre():
    ramp = torch.arange(6).expand(2, 3, 6)
    assert resample_labels(ramp, (2, 3, 3))[0, 0].tolist() == [
        1,
        3,
        5,
    ]  # centres at the edge of 0 and 1, of 2 and 3 ...
    assert resample_labels(ramp, (2, 3, 4))[1, 2].tolist() == [0, 2, 3, 5]  # at 0.75, 2.25, 3.75, 5.25 of 6
    assert resample_labels(ramp, (2, 3, 9))[0, 1].tolist() == [0, 1, 1, 2, 3, 3, 4, 5, 5]


def test_shape_at_keeps_none():
    assert shape_at((10, 20, 30), (5.0, 1.0, 1.0), (None, 2.0, 2.5)) == (10, 10, 12)


def test_bounding_box_margin_is_in_mm_and_cut_at_the_edge():
    mask = torch.zeros(10, 20, 30, dtype=torch.bool)
    mask[1, 10, 15:17] = True
    box = bounding_box(mask, (5.0, 2.0, 1.0), 10.0)
    assert [(b.start, b.stop) for b in box] == [(0, 4), (5, 16), (5, 27)]
    part = bounding_box(mask, (5.0, 2.0, 1.0), 2.5)  # a part of a voxel is a voxel
    assert [(b.start, b.stop) for b in part] == [(0, 3), (8, 13), (12, 20)]
    assert bounding_box(torch.zeros_like(mask), (5.0, 2.0, 1.0), 10.0) is None


@settings(deadline=None, max_examples=40)
@given(st.tuples(*[st.integers(1, 9)] * 3), st.tuples(*[st.integers(1, 14)] * 3), st.data())
def test_a_part_of_a_resampled_volume_is_that_part(size, shape, data):
    array = torch.randn(size, generator=torch.Generator().manual_seed(sum(size)))
    part = []
    for n in shape:
        first = data.draw(st.integers(0, n - 1))
        part.append(slice(first, data.draw(st.integers(first + 1, n))))
    whole = resample(array, shape)[tuple(part)]
    assert torch.allclose(resample_part(array, shape, tuple(part)), whole, atol=1e-6)
