"""Which rows are drawn for marking."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from clipfleet.labels.sampling import certify_key, fit_key, stratified, uniform_order

KEY = certify_key("job-1", "cat", 0.875, "0123456789abcdef")


class TestUniformOrder:
    def test_rows_are_sorted_by_their_hash(self) -> None:
        indexes = [70_000, 3, 12, 0, 2**40]

        hashes = [hashlib.sha256(KEY + index.to_bytes(8, "big")).digest() for index in indexes]
        assert uniform_order(indexes, KEY).tolist() == sorted(range(5), key=hashes.__getitem__)

    def test_two_rows_keep_their_order_whatever_else_is_there(self) -> None:
        every = np.arange(1_000)
        some = every[every % 3 == 0]

        order = every[uniform_order(every, KEY)]

        assert some[uniform_order(some, KEY)].tolist() == order[order % 3 == 0].tolist()

    @pytest.mark.parametrize(
        "other",
        [
            certify_key("job-2", "cat", 0.875, "0123456789abcdef"),
            certify_key("job-1", "dog", 0.875, "0123456789abcdef"),
            certify_key("job-1", "cat", 0.876, "0123456789abcdef"),
            certify_key("job-1", "cat", 0.875, "fedcba9876543210"),
            fit_key("job-1", "cat"),
        ],
    )
    def test_another_threshold_label_or_output_has_another_order(self, other: bytes) -> None:
        assert uniform_order(range(100), other).tolist() != uniform_order(range(100), KEY).tolist()

    def test_each_row_is_among_the_first_equally_often(self) -> None:
        counts = np.zeros(40)
        for number in range(2_000):
            counts[uniform_order(range(40), fit_key(str(number), "cat"))[:10]] += 1

        expected, deviation = 2_000 / 4, np.sqrt(2_000 * 0.25 * 0.75)
        assert np.abs(counts - expected).max() < 4 * deviation

    def test_a_row_that_appears_twice_is_refused(self) -> None:
        with pytest.raises(ValueError, match="appears twice"):
            uniform_order([1, 2, 1], KEY)


class TestStratified:
    random = np.random.default_rng(4)
    z = np.concatenate([random.normal(-5, 2, 9_000), random.normal(3, 2, 1_000), [80.0, -900.0]])

    def test_the_weights_add_up_to_the_rows(self) -> None:
        positions, probabilities = stratified(self.z, 60, KEY)

        assert len(positions) == len(set(positions.tolist())) == 60
        assert positions.tolist() == sorted(positions.tolist())
        assert np.sum(1 / probabilities) == pytest.approx(len(self.z))

    def test_each_range_of_scores_gives_as_many(self) -> None:
        positions, _ = stratified(self.z, 60, KEY)

        low, high = np.sort(self.z)[[int(0.3 * len(self.z)), int(0.999 * len(self.z))]]
        counts, _ = np.histogram(np.clip(self.z[positions], low, high), 10)
        assert counts.min() >= 5
        assert counts.max() <= 7

    def test_weighted_shares_are_unbiased(self) -> None:
        is_yes = (self.z > 0) ^ (np.arange(len(self.z)) % 7 == 0)

        found = []
        for number in range(400):
            positions, probabilities = stratified(self.z, 60, fit_key(str(number), "cat"))
            found.append(np.sum(is_yes[positions] / probabilities) / len(self.z))

        assert np.mean(found) == pytest.approx(is_yes.mean(), abs=4 * np.std(found) / np.sqrt(400))

    def test_it_depends_on_its_arguments_only(self) -> None:
        first, again = stratified(self.z, 60, KEY), stratified(self.z.copy(), 60, KEY)

        assert [part.tolist() for part in first] == [part.tolist() for part in again]
        assert stratified(self.z, 60, fit_key("job", "cat"))[0].tolist() != first[0].tolist()

    def test_a_larger_draw_contains_the_smaller_one(self) -> None:
        few, many = (set(stratified(self.z, n, KEY)[0].tolist()) for n in (60, 120))

        assert few <= many

    @pytest.mark.parametrize("z", [np.zeros(5), np.arange(5.0), np.array([1.0, 1, 1, 1, 9])])
    def test_all_rows_are_drawn_where_there_are_few(self, z: np.ndarray) -> None:
        positions, probabilities = stratified(z, 60, KEY)

        assert (positions.tolist(), probabilities.tolist()) == ([0, 1, 2, 3, 4], [1.0] * 5)

    def test_no_row_is_left_out_for_good(self) -> None:
        """Few marks make few bins, so that each row may be drawn."""
        drawn = {
            position
            for number in range(300)
            for position in stratified(self.z[:40], 4, fit_key(str(number), "cat"))[0].tolist()
        }

        assert drawn == set(range(40))

    def test_nothing_is_drawn_from_no_rows(self) -> None:
        assert [len(part) for part in stratified([], 60, KEY)] == [0, 0]

    def test_a_score_that_is_no_number_is_named(self) -> None:
        with pytest.raises(ValueError, match="score at position 2 is nan"):
            stratified([0.0, 1.0, float("nan")], 2, KEY)
