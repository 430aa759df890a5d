"""Rows of an earlier job as items: which are ok, their features, and what is refused."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from clipfleet.contract.columns import VectorType
from clipfleet.contract.jobs import ErrorCode, ItemError, StoredVectors
from clipfleet.errors import OutputDamagedError
from clipfleet_worker.chunk.stored_items import StoredItems, given_up_items, stored_items
from clipfleet_worker.score.ranking import rank
from tests.support.stored_vectors import unit_vectors, vector_rows

VECTORS = StoredVectors(
    uri="/old",
    job_id="old",
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
    model_fingerprint="f00d",
    dimension=8,
)
NUMBERS = unit_vectors(0, 10, 8)
NO_LABEL = ItemError(ErrorCode.BAD_URI, "no label set")


def rows(**options: Any) -> pa.Table:
    """Ten rows from parts of six and four."""
    return pa.concat_tables(
        [vector_rows(0, NUMBERS[:6], "f00d", **options), vector_rows(6, NUMBERS[6:], "f00d", **options)]
    )


def items(**options: Any) -> StoredItems:
    return stored_items(rows(**options), VECTORS)


@pytest.mark.parametrize("vector_type", list(VectorType))
@pytest.mark.parametrize("failed", [(), (2,), (5, 6), (0, 1, 2, 3, 4, 5)])
def test_features_stand_at_their_rows(vector_type: VectorType, failed: tuple[int, ...]) -> None:
    found = items(vector_type=vector_type, failed=failed)

    ok = [index for index in range(10) if index not in failed]
    assert found.features.items == 10
    assert found.features.positions.tolist() == ok
    assert found.features.values.dtype == np.float32
    np.testing.assert_allclose(found.features.values, NUMBERS[ok], atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(found.features.values, axis=1), 1, atol=1e-6)
    assert found.ok.to_pylist() == [index in ok for index in range(10)]


def test_a_slice_of_rows_has_its_own_vectors() -> None:
    """As a retry has them."""
    found = stored_items(
        rows(failed=(3,)).filter(pa.array([index in (1, 3, 8) for index in range(10)])), VECTORS
    )

    assert found.features.positions.tolist() == [0, 2]
    np.testing.assert_allclose(found.features.values, NUMBERS[[1, 8]], atol=1e-3)


def test_no_rows_at_all() -> None:
    assert stored_items(rows().slice(0, 0), VECTORS).features.values.shape == (0, 8)


def test_items_that_fail_lose_their_features_and_earlier_errors_stay() -> None:
    found = items(failed=(2,)).failing({1: NO_LABEL, 2: NO_LABEL, 7: NO_LABEL})

    assert found.features.positions.tolist() == [0, 3, 4, 5, 6, 8, 9]
    np.testing.assert_allclose(found.features.values[1], NUMBERS[3], atol=1e-3)
    assert found.error_codes.to_pylist()[:3] == [None, "bad_uri", "not_found"]
    assert found.error_details.to_pylist()[7] == "no label set"


def test_all_may_fail() -> None:
    found = items(failed=(2,)).all_failing(NO_LABEL)

    assert found.error_codes.to_pylist() == ["bad_uri"] * 2 + ["not_found"] + ["bad_uri"] * 7
    assert found.features.values.shape == (0, 8)


def test_fingerprints_of_rows_that_are_ok() -> None:
    assert items(failed=(2,)).fingerprints == ["f00d"]
    assert items(failed=tuple(range(10))).fingerprints == []
    table = rows()
    position = table.schema.get_field_index("model_fingerprint")
    table = table.set_column(position, "model_fingerprint", pa.nulls(10, pa.string()))

    assert stored_items(table, VECTORS).fingerprints == [None]


@pytest.mark.parametrize(
    ("column", "what"),
    [
        (pa.nulls(10, pa.list_(pa.float16(), 8)), "have no vector"),
        (pa.nulls(10, pa.list_(pa.float16(), 4)), "not of 8"),
        (pa.nulls(10, pa.list_(pa.string(), 8)), "not of 8"),
        (pa.nulls(10, pa.string()), "not of 8"),
    ],
)
def test_ok_rows_without_such_a_vector_are_damage(column: pa.Array, what: str) -> None:
    table = rows()
    table = table.set_column(table.schema.get_field_index("embedding"), "embedding", column)

    with pytest.raises(OutputDamagedError, match=what):
        stored_items(table, VECTORS)


def test_a_vector_that_lacks_a_number_has_no_direction() -> None:
    lists = pa.array([[0.5] * 7 + [None], *[[0.5] * 8] * 9], pa.list_(pa.float32(), 8))
    table = rows()
    table = table.set_column(table.schema.get_field_index("embedding"), "embedding", lists)

    found = stored_items(table, VECTORS)

    assert found.error_codes.to_pylist() == ["crashed", *[None] * 9]


def scores_of(vectors: np.ndarray, labels: torch.Tensor) -> np.ndarray:
    return rank(torch.from_numpy(vectors).double(), labels, logit_scale=100.0, top_k=5).scores


def read_back(vectors: np.ndarray, kind: VectorType) -> np.ndarray:
    about = VECTORS.model_copy(update={"dimension": vectors.shape[1]})
    return stored_items(vector_rows(0, vectors, "f00d", vector_type=kind), about).features.values


def test_scores_of_float32_are_those_of_the_images_and_those_of_float16_close() -> None:
    """Random vectors of length 512, where rounding costs most: those of a model are closer to a label."""
    labels = torch.from_numpy(unit_vectors(1000, 10, 512))
    differences = []
    for seed in range(20):
        vectors = unit_vectors(seed, 2500, 512)
        expected = scores_of(vectors, labels)
        np.testing.assert_array_equal(scores_of(read_back(vectors, VectorType.FLOAT32), labels), expected)
        rounded = scores_of(read_back(vectors, VectorType.FLOAT16), labels)
        differences.append(np.abs(rounded - expected).max(axis=1))

    found = np.concatenate(differences)
    assert np.quantile(found, 0.999) < 0.001
    assert found.max() < 0.002


def test_a_failed_row_without_a_code_stays_failed() -> None:
    """Another program may have written it."""
    table = rows(failed=(2,))
    position = table.schema.get_field_index("error_code")
    table = table.set_column(position, "error_code", pa.nulls(10, pa.string()))

    for found in (stored_items(table, VECTORS), given_up_items(table, VECTORS, NO_LABEL)):
        assert found.error_codes.to_pylist()[2] == "crashed"
        assert found.ok.to_pylist()[2] is False
