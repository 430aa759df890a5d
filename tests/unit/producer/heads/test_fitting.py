"""Fitting on made-up vectors: what cross-validation chooses, where the weights begin, what counts."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression as Model

from clipfleet.heads import cross_validation, fitting_from_labels
from clipfleet.heads.cross_validation import STRENGTHS, Layer, Problem, folds, held_out, losses_of
from clipfleet.heads.fitting import LogisticRegression, fit_classifier, fit_multilabel, joined
from clipfleet.heads.fitting_from_labels import FromTexts, from_texts
from clipfleet.labels.metrics import unit

Array = np.ndarray
D, CLASSES = 16, 4
RANDOM = np.random.default_rng(0)
CENTRES = unit(RANDOM.normal(size=(CLASSES, D)))


def world(each: int, seed: int = 1, noise: float = 0.3) -> tuple[Array, Array]:
    """Vectors around the centres, and their classes."""
    random = np.random.default_rng(seed)
    truth = np.repeat(np.arange(CLASSES), each)
    return unit(CENTRES[truth] + random.normal(0, noise, (len(truth), D))), truth


def from_centres(scale: float) -> FromTexts:
    """A solver that begins at the centres."""
    return FromTexts(CENTRES, scale, has_free_bias=False)


def many(classes: int, each: int, seed: int, own: float = 0.66) -> tuple[Array, Array]:
    """Vectors of many classes that have much in common, as those of images; `own` is what they have not."""
    fixed, random = np.random.default_rng(0), np.random.default_rng(seed)
    common, apart = (unit(fixed.normal(size=(count, 64))) for count in (1, classes))
    centres = unit(np.sqrt(1 - own**2) * common + own * apart)
    truth = np.repeat(np.arange(classes), each)
    return unit(centres[truth] + random.normal(0, own / 22, centres[truth].shape)), truth


class TestFolds:
    def test_each_class_is_spread_evenly(self) -> None:
        truth = np.repeat([0, 1, 2], [2, 7, 20])

        found = folds(truth, 3, 5, np.random.default_rng(0))

        for label in range(3):
            counts = np.bincount(found[truth == label], minlength=5)
            assert counts.max() - counts.min() <= 1
        assert np.bincount(found).min() >= 5

    def test_a_class_of_two_is_always_learnt_from(self) -> None:
        truth = np.repeat([0, 1], [2, 30])
        found = folds(truth, 2, 5, np.random.default_rng(0))
        assert len(set(found[truth == 0])) == 2

    def test_equal_images_lie_in_the_same_fold(self) -> None:
        truth, groups = np.repeat([0, 1], [30, 40]), np.arange(70) // 3

        found = folds(truth, 2, 5, np.random.default_rng(0), groups)

        for group in range(groups.max()):
            assert len(set(found[groups == group])) == 1
        assert set(found) == set(range(5))

    def test_a_class_of_equal_images_is_still_learnt_from(self) -> None:
        truth, groups = np.repeat([0, 1], [4, 30]), np.concatenate([np.zeros(4, int), np.arange(1, 31)])
        found = folds(truth, 2, 5, np.random.default_rng(0), groups)
        assert len(set(found[truth == 0])) == 4


class TestClassifier:
    def test_a_thousand_classes_are_told_apart(self) -> None:
        """The gradient of the mean loss is so small there that a fixed tolerance ends at weights of 0."""
        features, truth = many(1_000, 2, seed=1, own=0.14)
        out, answers = many(1_000, 1, seed=2, own=0.14)

        layer = LogisticRegression().solve(Problem(features, truth, 1_000), 100.0, None)

        assert (layer.logits(out).argmax(axis=1) == answers).mean() > 0.9

    def test_of_many_labels_with_two_items_nothing_is_warned_of(self) -> None:
        features, truth = many(30, 2, seed=1)
        assert fit_classifier(features, truth, 30).layer.weight.shape == (30, 64)

    def test_an_item_of_weight_two_counts_as_two(self) -> None:
        features, truth = world(20, noise=0.5)
        weights = np.where(np.arange(len(truth)) % 3 == 0, 2.0, 1.0)
        twice = np.repeat(np.arange(len(truth)), weights.astype(int))
        whole = Problem(features[twice], truth[twice], CLASSES)
        for solver in (LogisticRegression(), from_centres(5)):
            weighted = solver.solve(Problem(features, truth, CLASSES, weights), 1.0, None)
            expected = solver.solve(whole, 1.0, None)
            assert weighted.weight == pytest.approx(expected.weight, abs=0.02)

    def test_a_search_that_ends_early_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        problem = Problem(*world(20), CLASSES)
        assert LogisticRegression().solve(problem, 1.0, None).is_minimum
        monkeypatch.setattr("clipfleet.heads.fitting.MOST_STEPS", 2)
        assert not LogisticRegression().solve(problem, 1.0, None).is_minimum

    def test_of_many_classes_fewer_items_judge(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cross_validation, "JUDGED_ANSWERS", 100)
        found = fit_classifier(*world(20), CLASSES)
        assert len(found.judged) == len(found.probabilities) == 24  # 25, evenly of four classes

    def test_the_layer_is_that_of_scikit_learn(self) -> None:
        features, truth = world(30, noise=0.5)

        layer = LogisticRegression().solve(Problem(features, truth, CLASSES), 1.0, None)

        model = Model(C=1.0, max_iter=1000, tol=1e-8).fit(features.astype(float), truth)
        assert layer.weight == pytest.approx(model.coef_, abs=0.01)
        assert layer.bias == pytest.approx(model.intercept_, abs=0.01)

    def test_two_classes_have_two_rows(self) -> None:
        features, truth = world(30, noise=0.5)
        two, answers = features[truth < 2].astype(float), truth[truth < 2]

        layer = LogisticRegression().solve(Problem(two, answers, 2), 1.0, None)

        logits = layer.logits(two)
        model = Model(C=1.0, max_iter=1000, tol=1e-8).fit(two, answers)
        assert layer.weight.shape == (2, D)
        assert logits[:, 1] - logits[:, 0] == pytest.approx(model.decision_function(two), abs=0.01)

    def test_the_strength_is_one_of_the_grid(self) -> None:
        assert fit_classifier(*world(20), CLASSES).c in STRENGTHS

    def test_the_figures_are_of_items_that_the_layer_had_not_seen(self) -> None:
        """Labels by chance: a layer that has seen them is right, on held-out items it is so by chance."""
        features, _ = world(40, noise=1.0)
        truth = np.random.default_rng(5).integers(0, CLASSES, len(features))

        found = fit_classifier(features, truth, CLASSES)

        right = (found.probabilities.argmax(1) == truth[found.judged]).mean()
        assert right < 0.4
        assert found.log_loss >= np.log(CLASSES) - 0.1
        assert found.probabilities.sum(axis=1) == pytest.approx(np.ones(len(features)), abs=1e-5)

    def test_noise_is_held_back_more(self) -> None:
        features, truth = world(40, noise=0.25)
        noisy = np.where(np.random.default_rng(2).random(len(truth)) < 0.5, truth[::-1], truth)
        assert fit_classifier(features, noisy, CLASSES).c < fit_classifier(features, truth, CLASSES).c

    def test_the_same_items_and_seed_give_the_same_layer(self) -> None:
        features, truth = world(20)
        first, second = (fit_classifier(features, truth, CLASSES, seed=3) for _ in range(2))
        assert (first.layer.weight == second.layer.weight).all()
        assert (first.probabilities == second.probabilities).all()

    def test_a_class_of_one_item_is_refused(self) -> None:
        features, truth = world(5)
        with pytest.raises(ValueError, match="class 0 has 1 items"):
            fit_classifier(features[4:], truth[4:], CLASSES)

    def test_a_warm_start_ends_where_a_cold_one_does(self) -> None:
        features, truth = world(30)
        solver, problem = LogisticRegression(), Problem(features, truth, CLASSES)
        before = solver.solve(problem, 1.0, None)
        warm, cold = (solver.solve(problem, 3.0, begin) for begin in (before, None))
        losses = [losses_of(one.logits(features), truth).sum() for one in (warm, cold)]
        assert losses[0] == pytest.approx(losses[1], rel=0.01)


class TestFromTheLabels:
    def test_held_back_wholly_it_orders_as_zero_shot_does(self) -> None:
        features, truth = world(10)

        layer = from_centres(20).solve(Problem(features, truth, CLASSES), 1e-9, None)

        assert layer.weight == pytest.approx(20 * CENTRES, abs=1e-6)
        assert layer.bias == pytest.approx(np.zeros(CLASSES), abs=1e-6)

    def test_the_minimum_is_one(self) -> None:
        features, truth = world(10)
        start, c = 10 * CENTRES, 1.0
        layer = from_centres(10).solve(Problem(features, truth, CLASSES), c, None)

        def loss(one: Layer) -> float:
            away = ((one.weight - start) ** 2).sum() + (one.bias**2).sum()
            return float(losses_of(one.logits(features), truth).sum() + away / (2 * c))

        random = np.random.default_rng(0)
        for _ in range(20):
            near = Layer(
                layer.weight + random.normal(0, 0.1, layer.weight.shape),
                layer.bias + random.normal(0, 0.1, CLASSES),
            )
            assert loss(near) > loss(layer)

    def test_where_few_items_show_nothing_better_it_stays_at_zero_shot(self) -> None:
        out = world(200, seed=9, noise=0.5)
        zero_shot = ((out[0] @ CENTRES.T).argmax(axis=1) == out[1]).mean()
        found = []
        for seed in range(10):
            few = world(5, seed=20 + seed, noise=0.5)
            head = fit_classifier(*few, CLASSES, solver_of=from_texts(*few, None, CENTRES))
            found.append((head.layer.logits(out[0]).argmax(axis=1) == out[1]).mean())
        assert np.mean(found) > zero_shot - 0.01

    def test_slices_change_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        problem = Problem(*world(20), CLASSES, np.linspace(0.5, 1.5, 80))
        whole = from_centres(5).solve(problem, 1.0, None)
        monkeypatch.setattr(fitting_from_labels, "_ANSWERS", 7 * CLASSES)
        assert from_centres(5).solve(problem, 1.0, None).weight == pytest.approx(whole.weight, abs=1e-6)

    def test_few_items_and_good_names_beat_few_items_alone(self) -> None:
        few, out = world(3, noise=0.5), world(200, seed=9, noise=0.5)
        texts = unit(CENTRES + np.random.default_rng(4).normal(0, 0.1, CENTRES.shape))
        nothing = fit_classifier(*few, CLASSES)
        labels = fit_classifier(*few, CLASSES, solver_of=from_texts(*few, None, texts))
        right = [(one.layer.logits(out[0]).argmax(1) == out[1]).mean() for one in (nothing, labels)]
        assert right[1] > right[0]

    def test_many_items_correct_names_that_mislead(self) -> None:
        features, truth = world(100, noise=0.2)
        swapped = CENTRES[::-1]
        found = fit_classifier(features, truth, CLASSES, solver_of=from_texts(features, truth, None, swapped))
        right = (found.probabilities.argmax(1) == truth[found.judged]).mean()
        assert right > 0.9 > (features @ swapped.T).argmax(1).__eq__(truth).mean()


class TestMultilabel:
    def test_items_that_nobody_judged_do_not_count(self) -> None:
        features, truth = world(30)
        shows = truth[:, None] == np.arange(CLASSES)
        known = np.random.default_rng(0).random(shows.shape) < 0.5
        wrong = np.where(known, shows, ~shows)

        first, second = (fit_multilabel(features, one, known) for one in (shows, wrong))

        assert (joined(first).weight == joined(second).weight).all()
        for label, one in enumerate(first):
            assert set(one.judged) == set(np.flatnonzero(known[:, label]))
        accepted = joined(first).logits(features) > 0
        assert (accepted == shows).mean() > 0.95

    def test_scores_that_are_all_high_get_a_bias(self) -> None:
        """A score of CLIP is never near 0: what is yes and what is no, only the items show."""
        classes, right = 10, []
        centres = unit(many(classes, 50, seed=0)[0].reshape(classes, 50, -1).mean(axis=1))
        noisy = unit(centres + np.random.default_rng(3).normal(0, 0.1, centres.shape))
        out, answers = many(classes, 40, seed=5)
        out = unit(out + np.random.default_rng(6).normal(0, 0.1, out.shape))
        for solver_of in (True, False):
            features, truth = many(classes, 5, seed=4)
            features = unit(features + np.random.default_rng(7).normal(0, 0.1, features.shape))
            shows = truth[:, None] == np.arange(classes)
            random, known = np.random.default_rng(8), shows.copy()
            for label in range(classes):
                known[random.choice(np.flatnonzero(~shows[:, label]), 5, replace=False), label] = True
            begin = from_texts(features, shows, known, noisy) if solver_of else None
            more = {} if begin is None else {"solver_of": begin}
            logits = joined(fit_multilabel(features, shows, known, **more)).logits(out)
            right.append(((logits >= 0) == (answers[:, None] == np.arange(classes))).mean())
        assert right[0] > right[1]

    def test_it_may_begin_at_the_labels(self) -> None:
        features, truth = world(4, noise=0.5)
        shows = truth[:, None] == np.arange(CLASSES)
        known = np.ones_like(shows)
        layer = joined(
            fit_multilabel(features, shows, known, solver_of=from_texts(features, shows, known, CENTRES))
        )
        out, answers = world(200, seed=7, noise=0.5)
        for label in range(CLASSES):
            scores = layer.logits(out)[:, label]
            assert np.median(scores[answers == label]) > np.quantile(scores[answers != label], 0.9)


def test_held_out_logits_do_not_depend_on_the_item_itself() -> None:
    features, truth = world(10)
    fold = folds(truth, CLASSES, 5, np.random.default_rng(0))
    changed = truth.copy()
    changed[0] = 3

    first, second = (
        held_out(Problem(features, one, CLASSES), fold, LogisticRegression(), 1.0).logits
        for one in (truth, changed)
    )

    assert (first[fold == fold[0]] == second[fold == fold[0]]).all()
