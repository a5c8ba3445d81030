"""Figures show the numbers of the JSON, all of them, and change none."""

from __future__ import annotations

import pytest

from stockpot.report.diagnosis_info import (
    Cloud,
    get_angle_info,
    get_barrier_matrix_info,
    get_diagnosis_infos,
    get_gap_info,
    get_greedy_path_info,
    get_landscape_info,
    get_layer_distance_info,
    get_lines_info,
    get_reliability_info,
    get_worth_info,
    short_names,
)

from .diagnosis_example import RUNS, told

ALL = [
    "landscape", "lines", "greedy-path", "barriers", "angles", "diversity", "gaps", "reliability",
    "growth", "worth", "layer-distances", "layer-angles",
]  # fmt: skip


def test_every_figure_has_an_id_of_its_own_and_says_what_it_shows() -> None:
    infos = get_diagnosis_infos(told())
    assert [info.id for info in infos] == ALL
    assert all(len(info.caption) > 40 for info in infos)


def test_a_diagnosis_without_parts_shows_what_it_has() -> None:
    bare = told()
    bare["landscape"] = None
    bare["barriers"] = {"lines": [], "pairs": []}
    bare["angles"] |= {"pairs": [], "layers": []}
    bare["diversity"] = {"pairs": [], "override": None}
    bare["calibration"]["models"] = []
    bare["soup_vs_ensemble"]["points"] = []
    bare["ingredients"] |= {"leave_one_out": [], "growth": []}
    assert get_diagnosis_infos(bare) == []


def test_the_landscape_holds_every_spot_and_mark_and_says_whether_the_soup_is_lower() -> None:
    data = told()
    info = get_landscape_info(data)
    plane = data["landscape"]
    assert [spot[:3] for spot in info.spots] == [
        (s["x"], s["y"], s["loss"]) for s in plane["spots"]
    ]
    assert [(m.x, m.y, m.distance, m.loss) for m in info.marks] == [
        (m["x"], m["y"], m["distance"], m["loss"]) for m in plane["marks"]
    ]
    assert info.marks[3].name == "average of run-00 and run-01"
    assert f"lies lower than both: {plane['marks'][3]['loss']:.4f} nat" in info.caption
    plane["soup_lower_than_both"] = False
    assert "is not lower than both" in get_landscape_info(data).caption


def test_lines_and_the_greedy_path_are_the_losses() -> None:
    data = told()
    lines, path = get_lines_info(data), get_greedy_path_info(data)
    assert [course.y for course in lines.courses] == [
        tuple(line["losses"]) for line in data["barriers"]["lines"][:2]
    ]
    assert lines.courses[0].name == "run-00 – run-01"
    assert "0.250 nat (run-00 – run-01)" in lines.caption
    assert path.courses[0].x == (1.0, 1.5, 2.0)
    assert path.courses[0].y == (0.2, 0.18, 0.19)


def test_the_matrix_is_symmetric_with_the_barrier_of_each_pair() -> None:
    data = told()
    info = get_barrier_matrix_info(data)
    for pair in data["barriers"]["pairs"]:
        i, j = RUNS.index(pair["a"]), RUNS.index(pair["b"])
        assert info.values[i][j] == info.values[j][i] == pair["barrier"]
    assert all(info.values[i][i] is None for i in range(6))


def test_pairs_are_grouped_by_what_differs_and_else_by_the_ratio_of_rates() -> None:
    data = told()
    info = get_angle_info(data)
    assert {g.name for g in info.groups} == {"differ in lr", "differ in lr, seed"}
    assert sum(len(g.points) for g in info.groups) == 15
    assert "+0.50, 95 % interval over 6 runs +0.10 to +0.80" in info.caption
    for pair in data["angles"]["pairs"]:
        pair["differs"] = ["lr", "seed"]
    names = [group.name for group in get_angle_info(data).groups]
    assert names == ["lr within ×3", "lr within ×10", "lr further apart"]
    data["ingredients"]["hyperparameters"][RUNS[0]] = {}
    assert get_angle_info(data).groups[-1].name == "pair"
    data["angles"]["pairs"][0]["differs"] = None
    assert [group.name for group in get_angle_info(data).groups] == ["pair"]


def test_every_point_of_soup_minus_ensemble_is_there() -> None:
    data = told()
    info = get_gap_info(data)
    assert isinstance(info, Cloud)
    shown = sorted((p.x, p.y) for group in info.groups for p in group.points)
    points = data["soup_vs_ensemble"]["points"]
    assert shown == sorted((p["approximation"], p["measured"]) for p in points)
    assert info.diagonal


def test_reliability_tells_the_error_before_and_after() -> None:
    data = told()
    info = get_reliability_info(data)
    row = data["calibration"]["models"][1]
    assert info.courses[1].y == tuple(b["accuracy"] for b in row["before"]["bins"])
    assert f"uniform {row['before']['ece']:.3f}, then {row['after']['ece']:.3f}" in info.caption


def test_the_worth_of_ingredients_is_sorted_the_most_useful_first() -> None:
    data = told()
    values = [row.value for row in get_worth_info(data).rows]
    assert values == sorted(values, reverse=True)
    data["direction"] = "min"
    values = [row.value for row in get_worth_info(data).rows]
    assert values == sorted(values)


def test_layers_have_one_row_each() -> None:
    info = get_layer_distance_info(told())
    assert info.rows == ("0", "2")
    assert info.values[0] == pytest.approx([0.1 * k for k in range(6)])


def test_names_stay_long_where_short_ones_would_clash() -> None:
    assert short_names(["a/x.pt", "a/y.pt", "uniform"])["a/x.pt"] == "x"
    assert set(short_names(["a/x.pt", "b/x.pt"]).values()) == {"a/x", "b/x"}
