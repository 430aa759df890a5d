"""The rows of a part: columns, order, nulls, failures, vectors; no passwords."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from clipfleet.contract.columns import LABEL_COLUMNS, accepted_column, label_columns
from clipfleet.contract.jobs import ErrorCode, ItemError
from clipfleet.contract.parts import PART_COLUMNS, PartCounts, count_rows, part_schema
from clipfleet_worker.chunk.rows import part_table
from clipfleet_worker.outcomes import EqualImage, Outcomes, Validators
from clipfleet_worker.score.accepting import Acceptance
from clipfleet_worker.score.label_columns import label_columns_of, placed
from clipfleet_worker.score.ranking import Ranking

NOT_FOUND = ItemError(ErrorCode.NOT_FOUND, "HTTP status 404")
VECTORS = np.array([[0.6, 0.8, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]], dtype=np.float32)


def items(*uris: str, **extra: list[str | None]) -> pa.Table:
    """Items 10, 11, ... as they are staged."""
    return pa.table(
        {
            "item_index": pa.array(range(10, 10 + len(uris)), pa.int64()),
            "item_id": [f"id {n}" for n in range(len(uris))],
            "uri": list(uris),
            **{name: pa.array(values, pa.string()) for name, values in extra.items()},
        }
    )


@pytest.fixture
def outcomes() -> Outcomes:
    """Three items: ok, not found, ok."""
    outcomes = Outcomes(3)
    outcomes.deliver([0, 2], VECTORS)
    outcomes.fail(1, NOT_FOUND)
    outcomes.widths[:], outcomes.heights[:] = [640, None, 31], [480, None, 17]
    outcomes.content_hashes[:] = ["aa", None, "cc"]
    return outcomes


def part(rows: pa.Table, outcomes: Outcomes, **options: Any) -> pa.Table:
    defaults = {"embedding_dimension": 4, "model_fingerprint": "f00d", "store_embeddings": True}
    return part_table(rows, outcomes, **{**defaults, **options})


THREE = items("/a.jpg", "/b.jpg", "/c.jpg", note=["x", None, "z"], source_label=["1", "2", "3"])


class TestEmbedding:
    def test_the_columns_are_the_contracts_then_the_sources_own(self, outcomes: Outcomes) -> None:
        table = part(THREE, outcomes)

        assert tuple(table.column_names) == (*PART_COLUMNS, "note", "source_label")
        extra = [pa.field("note", pa.string()), pa.field("source_label", pa.string())]
        assert table.schema == part_schema(4, extra)

    def test_one_row_per_item_in_their_order_failures_included(self, outcomes: Outcomes) -> None:
        rows = part(THREE, outcomes).to_pylist()

        assert [row["item_index"] for row in rows] == [10, 11, 12]
        assert [row["item_id"] for row in rows] == ["id 0", "id 1", "id 2"]
        assert [row["status"] for row in rows] == ["ok", "failed", "ok"]
        assert [row["note"] for row in rows] == ["x", None, "z"]
        assert [(row["width"], row["height"]) for row in rows] == [(640, 480), (None, None), (31, 17)]
        assert [row["content_hash"] for row in rows] == ["aa", None, "cc"]
        assert [row["model_fingerprint"] for row in rows] == ["f00d", None, "f00d"]

    def test_a_failed_row_has_its_error_and_an_ok_row_its_results(self, outcomes: Outcomes) -> None:
        ok, failed, _ = part(THREE, outcomes).to_pylist()

        assert (failed["error_code"], failed["error_detail"]) == ("not_found", "HTTP status 404")
        for name in ("label", "score", "labels", "scores", "embedding", "model_fingerprint"):
            assert failed[name] is None
        assert ok["error_code"] is None and ok["error_detail"] is None

    def test_vectors_are_float16_and_stand_at_their_items(self, outcomes: Outcomes) -> None:
        column = part(THREE, outcomes)["embedding"].combine_chunks()

        assert column.type == pa.list_(pa.float16(), 4)
        assert column.is_null().to_pylist() == [False, True, False]
        np.testing.assert_array_equal(column[0].as_py(), VECTORS[0].astype(np.float16))
        np.testing.assert_array_equal(column[2].as_py(), VECTORS[1].astype(np.float16))

    def test_a_failure_after_decoding_keeps_what_is_known(self, outcomes: Outcomes) -> None:
        outcomes.widths[1], outcomes.heights[1], outcomes.content_hashes[1] = 5, 6, "bb"
        row = part(THREE, outcomes).to_pylist()[1]

        assert (row["width"], row["height"], row["content_hash"]) == (5, 6, "bb")


class TestOfAStore:
    """Rows that a store takes."""

    ITEMS = items("/a.jpg", "/b.jpg", "/c.jpg", note=["x", None, "z"])
    STAGED = (
        ITEMS.append_column("_version", pa.array(["5 v1", None, "7 v2"]))
        .append_column("_digest", pa.array([1, 2, 3]))
        .append_column("_etag", pa.array(['"old"', None, None]))
        .append_column("_last_modified", pa.nulls(3, pa.string()))
        .append_column("_content_hash", pa.array(["aa", None, None]))
    )

    def test_rows_have_what_the_store_needs_and_not_what_was_known(self) -> None:
        outcomes = Outcomes(3)
        outcomes.keep(0, "aa")
        outcomes.fail(1, NOT_FOUND)
        outcomes.validators[2] = Validators('"new"', "Mon, 02 Nov 2026 00:00:00 GMT")
        outcomes.sizes_bytes[2], outcomes.content_hashes[2] = 99, "cc"
        outcomes.copy(2, EqualImage(VECTORS[0].astype(np.float16), 31, 17))

        table = part(self.STAGED, outcomes, fills_a_store=True)

        assert table.schema == part_schema(4, [pa.field("note", pa.string())], fills_a_store=True)
        wanted = (
            "status", "content_hash", "_version", "_digest", "_etag", "_size_bytes", "_is_copied", "width",
        )  # fmt: skip
        assert [tuple(row[name] for name in wanted) for row in table.to_pylist()] == [
            ("same", "aa", "5 v1", 1, None, None, False, None),
            ("failed", None, None, 2, None, None, False, None),
            ("ok", "cc", "7 v2", 3, '"new"', 99, True, 31),
        ]  # fmt: skip
        assert table["_last_modified"].to_pylist() == [None, None, "Mon, 02 Nov 2026 00:00:00 GMT"]
        assert table["embedding"].to_pylist() == [None, None, VECTORS[0].astype(np.float16).tolist()]
        assert table["model_fingerprint"].to_pylist() == [None, None, "f00d"]
        assert count_rows(table) == PartCounts(2, 1, {"not_found": 1}, same=1, copied=1)

    def test_a_chunk_that_is_given_up_has_the_columns_too(self) -> None:
        outcomes = Outcomes(3)
        outcomes.keep(0, "aa")
        outcomes.fail_all(NOT_FOUND)

        table = part(self.STAGED, outcomes, fills_a_store=True, model_fingerprint=None)

        assert table["status"].to_pylist() == ["failed"] * 3
        assert table["_digest"].to_pylist() == [1, 2, 3]
        assert count_rows(table) == PartCounts(0, 3, {"not_found": 3})

    def test_a_column_of_such_a_name_stays_in_another_job(self, outcomes: Outcomes) -> None:
        rows = items("/a.jpg", "/b.jpg", "/c.jpg", _etag=["1", "2", "3"])

        assert part(rows, outcomes)["_etag"].to_pylist() == ["1", "2", "3"]


OK = np.array([0, 2])


def columns(of_set: str | None, labels: Sequence[str], found: Ranking | Acceptance) -> dict[str, pa.Array]:
    """The columns of a label set, of the first and the last of three items."""
    names = (*LABEL_COLUMNS, "accepted")
    names = names if of_set is None else (*label_columns(of_set), accepted_column(of_set))
    return dict(zip(names, placed([(OK, label_columns_of(labels, found))], 3), strict=True))


def ranked(indices: list[list[int]], scores: list[list[float]]) -> Ranking:
    return Ranking(np.array(indices), np.array(scores, np.float32))


class TestClassifying:
    def test_labels_stand_at_their_items_best_first(self, outcomes: Outcomes) -> None:
        best = columns(None, ["ant", "bee", "cow"], ranked([[1, 0], [2, 1]], [[0.75, 0.25], [0.5, 0.25]]))
        table = part(THREE, outcomes, store_embeddings=False, labels=best)
        rows = table.to_pylist()

        assert table.schema == part(THREE, outcomes).schema

        assert [row["label"] for row in rows] == ["bee", None, "cow"]
        assert [row["score"] for row in rows] == [0.75, None, 0.5]
        assert [row["labels"] for row in rows] == [["bee", "ant"], None, ["cow", "bee"]]
        assert [row["scores"] for row in rows] == [[0.75, 0.25], None, [0.5, 0.25]]
        assert [row["embedding"] for row in rows] == [None] * 3

    def test_several_label_sets_have_columns_of_their_own_after_ours(self, outcomes: Outcomes) -> None:
        insects = (["ant", "bee"], ranked([[1], [0]], [[0.75], [1.0]]))
        colours = (["red", "blue"], ranked([[0], [1]], [[0.5], [0.25]]))
        labels = columns(None, *insects) | columns("insects", *insects) | columns("colours", *colours)
        table = part(THREE, outcomes, label_set_names=["insects", "colours"], labels=labels)

        assert tuple(table.column_names) == (
            *PART_COLUMNS,
            "label_insects", "score_insects", "labels_insects", "scores_insects",
            "label_colours", "score_colours", "labels_colours", "scores_colours",
            "note", "source_label",
        )  # fmt: skip
        rows = table.to_pylist()
        for name in ("label", "label_insects"):
            assert [row[name] for row in rows] == ["bee", None, "ant"]
        assert [row["label_colours"] for row in rows] == ["red", None, "blue"]
        assert [row["scores_colours"] for row in rows] == [[0.5], None, [0.25]]
        assert [row["embedding"] is not None for row in rows] == [True, False, True]

    def test_accepted_labels_decide_the_label_and_its_score(self, outcomes: Outcomes) -> None:
        accepting = Acceptance(
            label_indices=np.array([[1, 0], [0, 1]]),
            scores=np.array([[0.75, 0.5], [0.25, 0.125]], np.float32),
            accepted=np.array([0]), accepted_counts=np.array([1, 0]),
            best_scores=np.array([0.5, 0.25], np.float32),
        )  # fmt: skip
        insects = (["ant", "bee"], accepting)
        colours = columns("colours", ["red", "blue"], ranked([[0], [1]], [[0.75], [0.25]]))
        table = part(
            THREE, outcomes, label_set_names=["insects", "colours"],
            accepted_columns=("accepted", "accepted_insects"),
            labels=columns(None, *insects) | columns("insects", *insects) | colours,
        )  # fmt: skip

        extra = [pa.field("note", pa.string()), pa.field("source_label", pa.string())]
        names = ("accepted", "accepted_insects")
        assert table.schema == part_schema(4, extra, ["insects", "colours"], accepted_columns=names)
        rows = table.to_pylist()
        for suffix in ("", "_insects"):
            assert [row[f"accepted{suffix}"] for row in rows] == [["ant"], None, []]
            assert [row[f"label{suffix}"] for row in rows] == ["ant", None, None]
            assert [row[f"score{suffix}"] for row in rows] == [0.5, None, 0.25]
            assert [row[f"labels{suffix}"] for row in rows] == [["bee", "ant"], None, ["ant", "bee"]]
        assert [row["label_colours"] for row in rows] == ["red", None, "blue"]

    def test_a_column_of_the_source_may_be_called_accepted_where_no_set_has_thresholds(
        self, outcomes: Outcomes
    ) -> None:
        table = part(items("/a", "/b", "/c", accepted=["x", None, "z"]), outcomes)

        assert table["accepted"].to_pylist() == ["x", None, "z"]


class TestGivingUp:
    @pytest.mark.parametrize("store", [True, False])
    @pytest.mark.parametrize("dimension", [4, None])
    def test_every_item_fails_with_the_chunks_error(self, store: bool, dimension: int | None) -> None:
        error = ItemError(ErrorCode.MODEL_UNAVAILABLE, "no such weights")
        outcomes = Outcomes(3)
        outcomes.fail_all(error)
        table = part(
            THREE, outcomes, embedding_dimension=dimension, model_fingerprint=None, store_embeddings=store,
            label_set_names=["insects", "colours"], accepted_columns=["accepted_colours"],
        )  # fmt: skip

        assert tuple(table.column_names[: len(PART_COLUMNS)]) == PART_COLUMNS
        assert table["error_code"].to_pylist() == ["model_unavailable"] * 3
        assert table["error_detail"].to_pylist() == ["no such weights"] * 3
        for name in ("embedding", "labels_insects", "score_colours", "accepted_colours"):
            assert table[name].null_count == 3
        if dimension:
            assert table.schema.field("embedding").type == pa.list_(pa.float16(), 4)

    def test_counts_by_code(self) -> None:
        codes = pa.array([None, "not_found", "timeout", None, "not_found"], pa.string())

        assert count_rows(pa.table({"error_code": codes})) == PartCounts(2, 3, {"not_found": 2, "timeout": 1})
        assert count_rows(pa.table({"error_code": codes[:0]})) == PartCounts(0, 0, {})


@pytest.mark.parametrize(
    ("uri", "stored"),
    [
        ("https://a.example/x.jpg", "https://a.example/x.jpg"),
        ("https://me@b.example/y", "https://b.example/y"),
        ("/home/me@work/z.jpg", "/home/me@work/z.jpg"),
        ("https://a.example/@me/x@2x.png?to=a@b", "https://a.example/@me/x@2x.png?to=a@b"),
        ("https://u:p@a.example:8443/x?y#z", "https://a.example:8443/x?y#z"),
        ("https://u:p@ss@a.example/x", "https://a.example/x"),
        ("HTTPS://u:p@A.example/x", "https://A.example/x"),
        ("http://u:p@[::1]/x", "http://[::1]/x"),
        ("http://u:p@[broken/x", "http://[broken/x"),
        ("file:///a@b.jpg", "file:///a@b.jpg"),
        ("data:image/png;base64,@", "data:image/png;base64,@"),
    ],
)
def test_a_part_holds_no_password(uri: str, stored: str) -> None:
    assert part(items(uri), Outcomes(1))["uri"].to_pylist() == [stored]
