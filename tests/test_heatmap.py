"""Heat maps and the boxes they point at: geometry alone."""

from __future__ import annotations

import numpy as np
import pytest

from cof.geometry.heatmap import HeatMap, make_heat_map, sliding_window


def raster(rows: int, columns: int) -> np.ndarray:
    """Centres of an image that a raster of tokens covers exactly."""
    x, y = (np.arange(columns) + 0.5) / columns, (np.arange(rows) + 0.5) / rows
    return np.stack(np.meshgrid(x, y), axis=-1)


def test_a_raster_keeps_its_cells() -> None:
    values = np.random.default_rng(0).random((3, 5))
    found = make_heat_map(values, raster(3, 5), (50, 30))
    np.testing.assert_array_equal(found.values, values)
    np.testing.assert_allclose(found.x_edges, np.linspace(0, 1, 6), atol=1e-6)
    np.testing.assert_allclose(found.mask()[4::8, 4::8], values / values.max(), rtol=1e-6)


def test_padding_is_left_out_and_cells_that_show_some_end_at_the_border() -> None:
    """10 rows of which 2.5 above and 2.5 below are padding: rows 2 and 7 show half of theirs."""
    centres = raster(10, 10)
    centres[..., 1] = (centres[..., 1] - 0.25) / 0.5
    centres[2, :, 1], centres[7, :, 1] = 0.05, 0.95  # of what they show, not of the whole cell
    centres[[0, 1, 8, 9]] = np.nan
    values = np.zeros((10, 10))
    values[0] = 100.0
    values[2, 3] = 1.0
    found = make_heat_map(values, centres, (100, 50))
    assert found.values.shape == (6, 10)
    assert found.values.sum() == 1.0
    np.testing.assert_allclose(found.y_edges, [0, 0.1, 0.3, 0.5, 0.7, 0.9, 1], atol=1e-6)
    assert found.values[0, 3] == 1.0


def test_four_rows_of_which_two_show_padding() -> None:
    """The two inner rows alone say where the cells are."""
    centres = raster(4, 4)
    centres[..., 1] = (centres[..., 1] - 0.125) / 0.75
    centres[0, :, 1], centres[3, :, 1] = 0.1, 0.9  # of what they show, not of the whole cell
    made = make_heat_map(np.ones((4, 4)), centres, (100, 75))
    np.testing.assert_allclose(made.y_edges, [0, 1 / 6, 0.5, 5 / 6, 1], atol=1e-6)


def test_masks_are_no_larger_than_they_need_be() -> None:
    edges = np.linspace(0, 1, 101)
    made = HeatMap(np.ones((100, 2)), np.array([0, 0.5, 1]), edges)
    assert made.mask().shape == (512, 16)


@pytest.mark.parametrize("tokens", [1, 2, 5])
def test_few_tokens(tokens: int) -> None:
    values = np.arange(1.0, tokens + 1)[None]
    found = make_heat_map(values, raster(1, tokens), (40, 40))
    assert found.y_edges.tolist() == [0.0, 1.0]
    np.testing.assert_allclose(found.x_edges, np.linspace(0, 1, tokens + 1), atol=1e-6)
    (x1, y1, x2, y2), inside = sliding_window(found, (40, 40))
    assert tokens > 1 or inside == 1
    assert 0 <= x1 < x2 <= 1
    assert (y1, y2) == (0.0, 1.0)
    assert tokens > 1 or (x1, x2) == (0.0, 1.0)


def test_tokens_in_no_raster_are_averaged_where_they_look() -> None:
    """Four tiles of 4x4 after a thumbnail of 4x4, which says nothing."""
    fine, coarse = raster(8, 8), raster(4, 4)
    warm = (fine[..., 0] > 0.5) & (fine[..., 1] < 0.5)
    tiles = [(slice(y, y + 4), slice(x, x + 4)) for y in (0, 4) for x in (0, 4)]
    values = np.concatenate([np.zeros(16), *(warm[tile].ravel() for tile in tiles)])
    centres = np.concatenate([coarse.reshape(-1, 2), *(fine[t].reshape(-1, 2) for t in tiles)])
    found = make_heat_map(values, centres, (80, 80))
    rows, columns = found.values.shape
    assert rows == columns == 6
    assert found.values[:3, 3:].sum() == pytest.approx(found.values.sum())
    assert (found.values[:3, 3:] >= 0.5).all()


def test_a_cell_that_no_token_looks_at_takes_the_nearest_ones_heat() -> None:
    centres = np.array([[0.05, 0.5], [0.1, 0.5], [0.15, 0.5], [0.9, 0.5]])
    found = make_heat_map(np.array([1.0, 1.0, 1.0, 7.0]), centres, (300, 30))
    assert found.values.shape == (1, 2)
    found = make_heat_map(
        np.array([1.0] * 6 + [7.0, 7.0]), np.repeat(centres, 2, axis=0), (300, 30)
    )
    assert found.values.tolist() == [[1.0, 1.0, 7.0, 7.0]]


def vicrops_window(values: np.ndarray, image_wh: tuple[int, int]) -> tuple[int, ...]:
    """Left, top, right and bottom in cells of the window whose middle ViCrop crops about:
    `bbox_from_att_image_adaptive`, saccharomycetes/mllms_know at a64c5d5, utils.py."""
    grid_h, grid_w = values.shape
    length = 0.2 * (image_wh[0] * image_wh[1]) ** 0.5
    found = []
    for ratio in (1, 1.2, 1.4, 1.6, 1.8, 2):
        w = min(int(length * ratio / (image_wh[0] / grid_w)), grid_w)
        h = min(int(length * ratio / (image_wh[1] / grid_h)), grid_h)
        sums = {
            (x, y): values[y : y + h, x : x + w].sum()
            for x in range(grid_w - w + 1)
            for y in range(grid_h - h + 1)
        }
        x, y = max(sums, key=sums.__getitem__)
        beside = [sums[at] for at in ((x - 1, y), (x + 1, y), (x, y - 1), (x, y + 1)) if at in sums]
        found.append(((sums[x, y] - np.mean(beside)) / (w * h), (x, y, x + w, y + h)))
    return max(found, key=lambda each: each[0])[1]


def test_windows_of_a_whole_number_of_cells() -> None:
    """A fifth of ten cells is two of them, though borders are rounded."""
    values = np.zeros((10, 10))
    values[3:5, 6:8] = 1.0
    borders = np.linspace(0, 1, 11)
    borders[1] += 1e-6
    heat = HeatMap(values, borders, borders)
    assert sliding_window(heat, (50, 50))[0] == pytest.approx((0.6, 0.3, 0.8, 0.5))


@pytest.mark.parametrize("image_wh", [(100, 100), (640, 427), (333, 1000), (1024, 683)])
@pytest.mark.parametrize("grid", [(24, 24), (16, 16), (13, 29)])
def test_windows_are_vicrops(grid: tuple[int, int], image_wh: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    y, x = (np.linspace(0, 1, cells + 1) for cells in grid)
    for _ in range(10):
        values = rng.random(grid) ** 4
        left, top, right, bottom = vicrops_window(values, image_wh)
        box, inside = sliding_window(HeatMap(values, x, y), image_wh)
        assert inside == pytest.approx(values[top:bottom, left:right].sum() / values.sum())
        np.testing.assert_array_equal(box, [x[left], y[top], x[right], y[bottom]])


def test_windows_are_square_in_pixels() -> None:
    x, y = np.linspace(0, 1, 41), np.linspace(0, 1, 11)
    values = np.zeros((10, 40))
    values[4:8, 20:24] = 1.0
    (x1, y1, x2, y2), _ = sliding_window(HeatMap(values, x, y), (400, 100))
    assert (x2 - x1) * 400 == pytest.approx((y2 - y1) * 100)
    assert (x1, y1) == pytest.approx((0.5, 0.4))


@pytest.mark.parametrize("values", [np.zeros((3, 3)), np.full((3, 3), 0.2)])
def test_flat(values: np.ndarray) -> None:
    edges = np.linspace(0, 1, 4)
    assert HeatMap(values, edges, edges).flat
    values = values.copy()
    values[0, 0] += 0.01
    assert not HeatMap(values, edges, edges).flat
