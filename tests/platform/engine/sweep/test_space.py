"""The space of a sweep: lists, distributions, config groups, and what is refused."""

import json

import numpy as np
import pytest

from platform.engine.config.compose import load_config, to_plain
from platform.engine.errors import UserError
from platform.engine.storage.location import open_storage
from platform.engine.sweep.draws import Draw, read_draw
from platform.engine.sweep.space import flat, name_of, read_space, with_point
from platform.engine.sweep.trials import PointBook
from platform.finetune import FinetuneConfig

SETTINGS = to_plain(load_config(FinetuneConfig, "finetune"))


def space(given: dict):
    return read_space(given, SETTINGS, {})


def test_each_distribution_stays_in_its_range_and_fills_it():
    generator = np.random.default_rng(0)
    ranges = {"uniform": [0.4, 0.7], "log_uniform": [1e-5, 1e-2], "integer": [3, 6], "choice": ["a", [1, 2]]}
    drawn = {}
    for kind, values in ranges.items():
        draw = read_draw("x", {kind: values})
        drawn[kind] = [draw.sample(generator) for _ in range(2000)]
        assert all(draw.from_optuna(draw.to_optuna(value)) == value for value in drawn[kind][:50])
    assert 0.4 <= min(drawn["uniform"]) < 0.41 and 0.69 < max(drawn["uniform"]) <= 0.7
    assert np.median(drawn["log_uniform"]) == pytest.approx(10**-3.5, rel=0.2)  # uniform: 5e-3
    assert set(drawn["integer"]) == {3, 4, 5, 6} and all(isinstance(each, int) for each in drawn["integer"])
    assert {json.dumps(each) for each in drawn["choice"]} == {'"a"', "[1, 2]"}


def test_a_drawn_number_is_short_but_never_outside():
    draw = Draw("uniform", (0.123456, 0.123457))
    assert 0.123456 <= draw.sample(np.random.default_rng(0)) <= 0.123457


def test_every_combination_of_the_lists_has_the_same_draws():
    found = space({"seed": [0, 1, 2], "supervised": {"learning_rate": {"log_uniform": [1e-5, 1e-3]}}})
    points = found.points(4, seed=5)
    assert len(points) == 12 and [list(point) for point in points] == [["seed", "supervised.learning_rate"]] * 12
    rates = {seed: [p["supervised.learning_rate"] for p in points if p["seed"] == seed] for seed in (0, 1, 2)}
    assert rates[0] == rates[1] == rates[2] and len(set(rates[0])) == 4
    assert found.points(2, seed=5) == points[:6]  # more samples keep the first ones
    assert found.points(4, seed=6) != points


def test_repeated_draws_are_one_trial():
    assert len(space({"seed": {"integer": [1, 3]}}).points(50, seed=0)) == 3


def test_corners_have_every_value_and_both_ends():
    corners = space({"seed": [1, 2, 3], "train_fraction": {"uniform": [0.1, 1.0]}}).corners()
    assert {point["seed"] for point in corners} == {1, 2, 3} and {point["train_fraction"] for point in corners} == {0.1, 1.0}


def test_a_config_group_is_a_choice_and_single_settings_come_after_it():
    points = space({"model": ["vit_tiny", "vit_base_ics"], "model.drop_path": [0.3]}).points(1, seed=0)
    found = [with_point(json.loads(json.dumps(SETTINGS)), point)["model"] for point in points]
    assert [(one["width"], one["stem"], one["drop_path"]) for one in found] == [(192, "patch", 0.3), (768, "ics", 0.3)]
    assert [name_of(point) for point in points] == ["model=vit_tiny-drop_path=0.3", "model=vit_base_ics-drop_path=0.3"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": ["vit_smal"]}, r"space.model: there is no configs/model/vit_smal.yaml; choices: vit_base, "),
        ({"model": [1]}, r"space.model: there is no configs/model/1.yaml"),
        ({"seed": {"uniform": [1]}}, r"space.seed.uniform must be \[lowest,highest\].*got \[1\]"),
        ({"seed": {"uniform": [2, 1]}}, r"ascending order: got \[2, 1\]"),
        ({"seed": {"integer": [1, 2.5]}}, r"space.seed.integer must be two whole numbers: got \[1, 2.5\]"),
        ({"train_fraction": {"log_uniform": [0, 1]}}, r"log_uniform must be two positive numbers: got \[0, 1\]"),
        ({"seed": {"choice": [1, 1]}}, r"space.seed.choice has 1 more than once"),
        ({"seed": {"choice": 3}}, r"space.seed.choice must be a list of values: got 3"),
        ({"seed": {"normal": [0, 1]}}, r"space.seed must be a list of values to try.*log_uniform.*got 'normal' below it"),
    ],
)
def test_what_is_refused(given, message):
    with pytest.raises(UserError, match=message):
        space(given)


def test_nested_and_dotted_keys_are_the_same():
    assert flat({"a": {"b.c": [1]}, "d": [2, 3]}) == {"a.b.c": [1], "d": [2, 3]}


def test_points_are_stored_before_they_run(tmp_path):
    location = open_storage(str(tmp_path))
    book = PointBook(location)
    book.add([{"seed": 1}])
    book.add([{"seed": 2}])
    assert PointBook(location).points == [{"seed": 1}, {"seed": 2}]
    (tmp_path / "points.json").write_text('{"a": 1}')
    with pytest.raises(UserError, match=r"points.json is not the list of points"):
        PointBook(location)
