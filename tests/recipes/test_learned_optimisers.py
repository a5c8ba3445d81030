"""Parametrisations, optimisers and the evaluation log of learned soups."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from stockpot.evaluate.journal import Journal
from stockpot.mixing.blocks import InnerProducts
from stockpot.recipes.learned.descent import adopt_log, recorded
from stockpot.recipes.learned.optimisers import (
    Free,
    Hyperplane,
    Parametrisation,
    Point,
    Softmax,
    Steps,
    Value,
    adamw,
    lbfgs,
)

GENERATOR = torch.Generator().manual_seed(0)
INGREDIENTS = torch.randn(4, 30, generator=GENERATOR, dtype=torch.float64)
TARGET = torch.tensor([0.55, 0.25, 0.12, 0.08], dtype=torch.float64) @ INGREDIENTS


def quadratic(parametrisation: Parametrisation):
    """Loss ½‖βθ − target‖², θ the mixture of four vectors, in one group."""
    mean = INGREDIENTS.mean(dim=0)

    def evaluate(point: Point, batch: int) -> Value:
        theta = parametrisation.coefficients(point.raw)[0] @ INGREDIENTS
        residual = point.beta * theta - TARGET
        gradient = point.beta * residual
        products = InnerProducts(
            ((INGREDIENTS - mean) @ gradient)[None], (mean @ gradient).reshape(1)
        )
        return Value(
            0.5 * float(residual @ residual),
            parametrisation.pullback(point.raw, products),
            float(residual @ theta),
        )

    return evaluate


def parametrisations() -> list[Parametrisation]:
    spreads = (INGREDIENTS - INGREDIENTS.mean(dim=0)).norm(dim=1)[None]
    return [Softmax(), Free(), Hyperplane(spreads)]


@pytest.mark.parametrize("parametrisation", parametrisations(), ids=lambda p: type(p).__name__)
def test_start_gives_back_the_coefficients_that_it_was_asked_for(
    parametrisation: Parametrisation,
) -> None:
    wanted = torch.tensor([[0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)
    torch.testing.assert_close(parametrisation.coefficients(parametrisation.start(wanted)), wanted)


@pytest.mark.parametrize("parametrisation", parametrisations(), ids=lambda p: type(p).__name__)
def test_pullback_is_the_derivative_by_autograd(parametrisation: Parametrisation) -> None:
    raw = torch.randn(1, 4, generator=GENERATOR, dtype=torch.float64).requires_grad_()
    theta = parametrisation.coefficients(raw)[0] @ INGREDIENTS
    (0.5 * (0.7 * theta - TARGET).square().sum()).backward()
    value = quadratic(parametrisation)(Point(raw.detach(), 0.7), -1)
    torch.testing.assert_close(value.raw, raw.grad)


def test_softmax_and_hyperplane_always_sum_to_one() -> None:
    raw = torch.randn(1, 4, generator=GENERATOR, dtype=torch.float64)
    for parametrisation in (parametrisations()[0], parametrisations()[2]):
        assert float(parametrisation.coefficients(raw).sum()) == pytest.approx(1, abs=1e-12)


def test_hyperplane_of_a_group_that_no_ingredient_moved_stays_finite() -> None:
    hyperplane = Hyperplane(torch.zeros(1, 3, dtype=torch.float64))
    products = InnerProducts(torch.zeros(1, 3, dtype=torch.float64), torch.zeros(1))
    uniform = torch.full((1, 3), 1 / 3, dtype=torch.float64)
    assert torch.isfinite(hyperplane.pullback(hyperplane.start(uniform), products)).all()


@pytest.mark.parametrize("optimise", [adamw, lbfgs])
def test_both_optimisers_find_the_mixture_that_made_the_target(optimise) -> None:
    start = Point(Softmax().start(torch.full((1, 4), 0.25, dtype=torch.float64)), 1.0)
    losses: list[float] = []
    end = optimise(
        start,
        quadratic(Softmax()),
        lambda epoch, point, loss: losses.append(loss) or False,
        n_epochs=400,
    )
    assert losses[-1] < 1e-3 * losses[0]
    coefficients = Softmax().coefficients(end.raw)[0]
    torch.testing.assert_close(
        end.beta * coefficients,
        torch.tensor([0.55, 0.25, 0.12, 0.08], dtype=torch.float64),
        atol=0.02,
        rtol=0,
    )


def test_a_line_search_steps_back_from_where_the_loss_is_no_number() -> None:
    plain = quadratic(Free())

    def walled(point: Point, batch: int) -> Value:
        value = plain(point, batch)
        # As where a variance turns negative: nothing can be said beyond.
        return Value(math.nan, value.raw * math.nan, math.nan) if point.beta > 1.05 else value

    start = Point(torch.full((1, 4), 0.25, dtype=torch.float64), 1.0)
    losses: list[float] = []
    end = lbfgs(start, walled, lambda _, __, loss: losses.append(loss) or False, n_epochs=100)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.05 * plain(start, -1).loss
    assert end.beta <= 1.05


def test_steps_end_where_the_loss_is_no_number() -> None:
    def dying(point: Point, batch: int) -> Value:
        value = quadratic(Free())(point, batch)
        return value if point.beta < 1.2 else Value(math.nan, value.raw, value.beta)

    epochs: list[int] = []
    start = Point(torch.full((1, 4), 0.1, dtype=torch.float64), 1.0)
    end = adamw(start, dying, lambda epoch, *_: epochs.append(epoch) or False, n_epochs=50)
    assert 1 < len(epochs) < 50
    assert end.beta >= 1.2


@pytest.mark.parametrize("optimise", [adamw, lbfgs])
def test_beta_stays_where_it_was_when_it_is_not_learned(optimise) -> None:
    start = Point(Softmax().start(torch.full((1, 4), 0.25, dtype=torch.float64)), 1.5)
    end = optimise(start, quadratic(Softmax()), lambda *_: False, n_epochs=5, learn_beta=False)
    assert end.beta == 1.5


@pytest.mark.parametrize("optimise", [adamw, lbfgs])
def test_a_visitor_stops_the_optimiser(optimise) -> None:
    epochs: list[int] = []
    start = Point(Softmax().start(torch.full((1, 4), 0.25, dtype=torch.float64)), 1.0)
    optimise(
        start,
        quadratic(Softmax()),
        lambda epoch, point, loss: epochs.append(epoch) or epoch == 2,
        n_epochs=50,
    )
    assert epochs == [0, 1, 2]


@pytest.mark.parametrize("optimise", [adamw, lbfgs])
def test_a_killed_run_ends_where_an_undisturbed_one_does_and_evaluates_nothing_twice(
    optimise, tmp_path: Path
) -> None:
    start = Point(Softmax().start(torch.full((1, 4), 0.25, dtype=torch.float64)), 1.0)
    undisturbed = optimise(start, quadratic(Softmax()), lambda *_: False, n_epochs=12)
    calls = 0

    def dying(point: Point, batch: int) -> Value:
        nonlocal calls
        calls += 1
        if calls in (4, 9):
            raise KeyboardInterrupt
        return quadratic(Softmax())(point, batch)

    path = tmp_path / "journal.sqlite"
    for _ in range(2):
        with Journal(path) as journal, pytest.raises(KeyboardInterrupt):
            optimise(start, recorded(dying, journal, "salt"), lambda *_: False, n_epochs=12)
    with Journal(path) as journal:
        end = optimise(start, recorded(dying, journal, "salt"), lambda *_: False, n_epochs=12)
        assert torch.equal(end.raw, undisturbed.raw)
        assert end.beta == undisturbed.beta
        n_calls = calls
        optimise(start, recorded(dying, journal, "salt"), lambda *_: False, n_epochs=12)
        assert calls == n_calls
        assert journal.entries() == []  # steps are nothing that was scored


def test_another_salt_shares_nothing() -> None:
    journal = Journal(None)
    point = Point(Softmax().start(torch.full((1, 4), 0.25, dtype=torch.float64)), 1.0)
    recorded(quadratic(Softmax()), journal, "one")(point, -1)
    assert journal.kept(point.key("one/-1")) is not None
    assert journal.kept(point.key("two/-1")) is None
    assert journal.kept(point.key("one/0")) is None


def test_a_loss_that_is_no_number_is_kept_as_such() -> None:
    journal = Journal(None)
    point = Point(torch.zeros(1, 2, dtype=torch.float64), 1.0)

    def lost(point: Point, batch: int) -> Value:
        return Value(math.nan, torch.full((1, 2), math.inf, dtype=torch.float64), -math.inf)

    recorded(lost, journal, "salt")(point, -1)
    again = recorded(quadratic(Softmax()), journal, "salt")(point, -1)
    assert math.isnan(again.loss)
    assert again.raw.tolist() == [[math.inf, math.inf]]
    assert again.beta == -math.inf


def test_the_log_of_an_earlier_version_is_taken_over(tmp_path: Path) -> None:
    log, journal = tmp_path / "salt.jsonl", Journal(None)
    point = Point(torch.zeros(2, 2, dtype=torch.float64), 1.0)
    raw = [[(0.1).hex(), (0.2).hex()], [(0.3).hex(), (-0.4).hex()]]
    line = {"key": point.key("salt/-1"), "loss": (0.7).hex(), "beta": (0.05).hex(), "raw": raw}
    log.write_text("\n" + json.dumps(line) + '\n{"key": "cut sho')
    adopt_log(log, journal)
    assert not log.exists()
    value = recorded(quadratic(Softmax()), journal, "salt")(point, -1)
    assert (value.loss, value.beta) == (0.7, 0.05)
    assert value.raw.tolist() == [[0.1, 0.2], [0.3, -0.4]]


def test_warmup_rises_and_the_cosine_falls_to_zero() -> None:
    steps = Steps(warmup=0.2, cosine=True)
    factors = [steps.lr_factor(step, 10) for step in range(11)]
    assert factors[:2] == [0.5, 1.0]
    assert factors[2] == pytest.approx(1.0)
    assert factors[10] == pytest.approx(0.0)
    assert Steps().lr_factor(9, 10) == 1.0
