"""What producer and worker agree on: which jobs there can be, what makes two the same, names, hashes."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from clipfleet.contract.heads import (
    Activation,
    Head,
    HeadInput,
    HeadKind,
    HeadOutput,
    HeadTraining,
    JobHead,
)
from clipfleet.contract.jobs import (
    MAX_CHUNK_SIZE,
    DecodeRoute,
    ErrorCode,
    Exif,
    Job,
    JobState,
    Lane,
    Precision,
    SourceDescription,
    StoredVectors,
    Task,
    new_job_id,
    read_job,
)
from clipfleet.contract.label_sets import DEFAULT_TEMPLATE, LabelSet, short_hash
from clipfleet.contract.parts import (
    PART_COLUMNS,
    PartCounts,
    PartIdentity,
    VectorType,
    extra_column_name,
    part_footer,
    part_schema,
    read_part_footer,
)
from clipfleet.contract.policies import DecisionLog
from clipfleet.contract.stores import StoreTarget
from clipfleet.contract.versions import SCHEMA_VERSION
from clipfleet.errors import JobUnreadableError, UsageError
from tests.support.jobs import make_job
from tests.support.policies import make_policy, moderation_job

NO_IDENTITY = {
    "schema_version", "job_id", "created_at", "lane", "max_error_rate", "on_finished", "on_finished_queue",
}  # fmt: skip
CATS = LabelSet(labels=("cat",), none=True)
HEAD = JobHead(
    sha256="0" * 64,
    head=Head(
        name="taste", kind=HeadKind.REGRESS, labels=("taste",), activations=(Activation.NONE,),
        output=HeadOutput.NONE, input=HeadInput(dim=512, model="demo"), training=HeadTraining(recipe="test"),
    ),
)  # fmt: skip
VECTORS = StoredVectors(
    uri="/vectors",
    job_id="vectors",
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
    model_fingerprint="0" * 16,
    dimension=512,
)
STORE = StoreTarget(
    uri="/store", store_id="a" * 32, base_version=7, listed_at=datetime(2026, 1, 1, tzinfo=UTC)
)
DIFFERENT: dict[str, Any] = {
    "schema_version": 0,
    "vector_type": VectorType.FLOAT32,
    "job_id": "other",
    "model": "ViT-L-14:openai",
    "precision": Precision.FP32,
    "decode": DecodeRoute.EXACT,
    "exif": Exif.APPLY,
    "label_sets": (LabelSet(labels=("cat",)),),
    "heads": (HEAD,),
    "vectors": VECTORS,
    "top_k": 6,
    "lane": Lane.HIGH,
    "max_error_rate": 0.2,
    "chunk_size": 7,
    "source": SourceDescription(kind="folder", uri="/other"),
    "output": "/elsewhere",
    "created_at": datetime(2020, 1, 1, tzinfo=UTC),
}


class TestJob:
    def test_it_is_the_same_after_a_way_through_json(self) -> None:
        job = make_job(labels=("cat", "żółw"), lane=Lane.BULK)

        for text in (job.model_dump_json(), job.model_dump_json(indent=1).encode()):
            assert read_job(text) == job
            assert read_job(text).fingerprint == job.fingerprint

    def test_it_cannot_be_changed(self) -> None:
        with pytest.raises(ValidationError):
            make_job().top_k = 9

    @pytest.mark.parametrize(
        "values",
        [
            {"task": Task.CLASSIFY},
            {"task": Task.EMBED_TEXT},
            {"task": Task.EMBED_TEXT, "text_column": "text"},
            {"text_column": "text"},
            {"labels": ("a",), "task": Task.EMBED},
            {"chunk_size": 0},
            {"chunk_size": MAX_CHUNK_SIZE + 1},
            {"top_k": 0},
            {"lane": "urgent"},
            {"a_new_field": 1},
        ],
    )
    def test_what_makes_no_sense_is_refused(self, values: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            make_job(**values)

    def test_several_label_sets_have_columns_of_their_own(self) -> None:
        insects, colours = (LabelSet(name=name, labels=("x",)) for name in ("insects", "colours"))
        source = SourceDescription(kind="csv", uri="/l.csv", extra_columns=("group",))

        def named(*sets: LabelSet, **values: Any) -> tuple[LabelSet, ...]:
            return make_job(task=Task.CLASSIFY, label_sets=sets, source=source, **values).named_label_sets

        assert named(insects) == ()
        assert named(insects, colours) == (insects, colours)
        assert named(insects, colours, label_set_column="group") == ()

    @pytest.mark.parametrize(
        ("names", "column", "extra", "problem"),
        [
            ("aa", None, (), "two label sets are named 'a'"),
            ("ab", None, ("labels_b",), "'b' would fill the column 'labels_b'.*rename one of them"),
            ("a", "group", (), "no column 'group'.*it has none at all"),
            ("a", "group", ("x", "y"), "no column 'group' to choose label sets by; it has x, y"),
        ],
    )
    def test_label_sets_that_cannot_be_told_apart(
        self, names: str, column: str | None, extra: tuple[str, ...], problem: str
    ) -> None:
        sets = tuple(LabelSet(name=name, labels=("x",)) for name in names)
        source = SourceDescription(kind="csv", uri="/l.csv", extra_columns=extra)

        with pytest.raises(ValidationError, match=problem):
            make_job(task=Task.CLASSIFY, label_sets=sets, source=source, label_set_column=column)

    def test_a_source_column_called_accepted_must_be_renamed(self) -> None:
        source = SourceDescription(kind="csv", uri="/l.csv", extra_columns=("accepted",))

        with pytest.raises(ValidationError, match=r"column 'accepted'.*too: rename the column of the source"):
            make_job(task=Task.CLASSIFY, label_sets=(CATS,), source=source)

    @pytest.mark.parametrize("job_id", ["a", "A9", "2026-11.run_7", "x" * 64])
    def test_a_name(self, job_id: str) -> None:
        assert make_job(job_id=job_id).job_id == job_id

    @pytest.mark.parametrize(
        "job_id", ["", ".", "..", "-a", "a/b", "../a", "a b", "a:b", "a{b}", "a\n", "ä", "x" * 65, "a*"]
    )
    def test_a_name_that_could_be_more_than_a_name_is_refused(self, job_id: str) -> None:
        with pytest.raises(ValidationError):
            make_job(job_id=job_id)

    def test_a_fresh_name_is_allowed_sorts_by_day_and_is_new(self) -> None:
        names = {new_job_id() for _ in range(100)}

        assert len(names) == 100
        assert all(re.match(r"\d{8}-", make_job(job_id=name).job_id) for name in names)


class TestIdentity:
    def test_every_field_either_makes_a_job_another_one_or_is_listed_as_not(self) -> None:
        job = make_job(
            labels=("cat",), vector_type=VectorType.FLOAT32, exif=Exif.APPLY, heads=(HEAD,), vectors=VECTORS
        )
        filling = make_job(store=STORE)
        deciding = moderation_job(make_policy(), decisions=DecisionLog(uri="/log"))

        found = {*job.identity(), *filling.identity(), *deciding.identity()}
        assert found == set(Job.model_fields) - NO_IDENTITY

    def test_a_killed_submit_goes_on_whatever_the_store_holds_by_then(self) -> None:
        later = STORE.model_copy(update={"base_version": 8, "listed_at": datetime(2026, 2, 2, tzinfo=UTC)})
        other = STORE.model_copy(update={"store_id": "b" * 32})

        assert make_job(store=STORE).is_same(make_job(store=later))
        assert make_job(store=STORE).differences(make_job(store=other)) == ["store"]

    @pytest.mark.parametrize("values", [{"output": "redis://"}, {"labels": ("cat",)}])
    def test_only_embeddings_of_images_beside_a_store_fill_it(self, values: dict[str, Any]) -> None:
        with pytest.raises(ValidationError, match="fills a store embeds images"):
            make_job(store=STORE, **values)

    def test_jobs_from_before_there_was_an_option_are_the_same_without_it(self) -> None:
        assert not {"vector_type", "exif"} & set(make_job().identity())

    def test_what_older_workers_read_has_no_key_that_they_refuse(self) -> None:
        assert not {"vector_type", "exif"} & set(json.loads(make_job().model_dump_json()))
        assert json.loads(make_job(exif=Exif.APPLY).model_dump_json())["exif"] == "apply"

    @pytest.mark.parametrize("name", DIFFERENT)
    def test_a_different_value(self, name: str) -> None:
        job = make_job(labels=("dog",))
        other = job.model_copy(update={name: DIFFERENT[name]})

        assert (job.fingerprint == other.fingerprint) is (name in NO_IDENTITY)
        assert job.differences(other) == ([] if name in NO_IDENTITY else [name])

    def test_what_no_row_depends_on_is_no_part_of_it(self) -> None:
        promise = {"claim": "precision", "value": 0.9}
        plain = {"labels": ("cat", "cow"), "none": True}
        sets = [LabelSet(**plain), LabelSet(**plain, groups={"cat": "pets"}, promises={"cat": promise})]

        jobs = [make_job(task=Task.CLASSIFY, label_sets=(one,)) for one in sets]

        assert jobs[0].is_same(jobs[1])

    def test_all_that_differs_is_named(self) -> None:
        assert make_job().differences(make_job("/elsewhere", top_k=2)) == ["top_k", "output"]


class TestReading:
    @pytest.mark.parametrize("version", range(1, SCHEMA_VERSION + 1))
    def test_every_version_since_the_first(self, version: int) -> None:
        assert read_job(make_job(schema_version=version).model_dump_json()).schema_version == version

    @pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, 0, "1", None])
    def test_another_version_is_told_before_anything_else(self, version: object) -> None:
        text = json.dumps({"schema_version": version, "a_new_field": 1})

        with pytest.raises(JobUnreadableError, match=f"schema version {version}, .* update it"):
            read_job(text)

    @pytest.mark.parametrize("text", ["", "{", "[]", "7", "null", "{}", b"\xff\xfe"])
    def test_what_is_no_job_is_told_in_one_line(self, text: str | bytes) -> None:
        with pytest.raises(JobUnreadableError, match="not the description of a job") as caught:
            read_job(text)
        assert isinstance(caught.value, UsageError)
        assert "\n" not in str(caught.value)

    def test_the_first_field_that_is_wrong_is_named_but_not_its_value(self) -> None:
        value = json.loads(make_job().model_dump_json())
        value["source"]["uri"] = {"secret": 1}

        with pytest.raises(JobUnreadableError, match=r"'source\.uri'") as caught:
            read_job(json.dumps(value))
        assert "secret" not in str(caught.value)


class TestLabelSet:
    def test_without_templates_there_is_one(self) -> None:
        assert LabelSet(labels=("cat",)).templates == (DEFAULT_TEMPLATE,)

    @pytest.mark.parametrize(
        ("labels", "template", "words"),
        [
            ((), "{}", "label"),
            (("cat", " "), "{}", "label number 2 is empty"),
            (("cat", "dog", "cat"), "{}", "'cat' appears twice"),
            (("cat",), "a photo", "'a photo' must contain {} exactly once"),
            (("cat",), "{} and {}", "exactly once"),
        ],
    )
    def test_what_cannot_be_asked_for(self, labels: tuple[str, ...], template: str, words: str) -> None:
        with pytest.raises(ValidationError, match=re.escape(words)):
            LabelSet(labels=labels, templates=(template,))

    @pytest.mark.parametrize("prompts", [("",), ("dog", " ")])
    def test_an_empty_not_prompt_is_refused(self, prompts: tuple[str, ...]) -> None:
        with pytest.raises(ValidationError, match="a `not` prompt of 'cat' is empty"):
            LabelSet(labels=("cat", "cow"), none=True, not_prompts={"cat": prompts})

    @pytest.mark.parametrize(
        "values",
        [
            {"groups": {"cat": "\ud800"}},
            {"groups": {"\ud800": "pets"}},
            {"not_prompts": {"cat": ("dog", "\udfff")}, "none": True},
            {"background": ("\ud800",), "none": True},
        ],
        ids=ascii,
    )
    def test_text_that_is_not_utf_8_is_refused_at_any_depth(self, values: dict[str, Any]) -> None:
        with pytest.raises(ValidationError, match="is not UTF-8"):
            LabelSet(labels=("cat",), **values)

    def test_an_unreadable_planted_set_makes_the_job_unreadable(self) -> None:
        value = json.loads(make_job(task=Task.CLASSIFY, label_sets=(CATS,)).model_dump_json())
        value["label_sets"][0]["not_prompts"] = {"cat": [""]}

        with pytest.raises(JobUnreadableError, match="label_sets"):
            read_job(json.dumps(value))

    @pytest.mark.parametrize(
        "values",
        [
            {"thresholds": {"cat": 0.9}},
            {"not_prompts": {"cat": ("dog",)}},
            {"groups": {"cat": "pets"}},
            {"slope": 2.0, "intercepts": {"cat": 1.0}},
        ],
        ids=str,
    )
    def test_a_preset_has_no_values_by_label(self, values: dict[str, Any]) -> None:
        with pytest.raises(ValidationError, match=r"preset imagenet1k .*by label"):
            LabelSet(preset="imagenet1k", none=True, **values)

    def test_equal_content_has_an_equal_hash(self) -> None:
        one = LabelSet(labels=("cat", "dog"))

        assert LabelSet(labels=["cat", "dog"], templates=[DEFAULT_TEMPLATE]).hash == one.hash
        assert LabelSet(labels=("dog", "cat")).hash != one.hash
        assert LabelSet(labels=("cat", "dog"), templates=("{}",)).hash != one.hash


def test_states_after_which_nothing_happens() -> None:
    final = {state.value for state in JobState if state.is_final}
    assert final == {"completed", "completed_with_errors", "cancelled", "failed"}


def test_codes_are_their_names_in_small_letters_and_lanes_come_best_first() -> None:
    assert all(code.value == code.name.lower() for code in ErrorCode)
    assert list(Lane) == ["high", "normal", "bulk"]


def test_a_hash_is_the_same_on_every_machine_and_ignores_the_order_of_names_only() -> None:
    assert short_hash({"b": [1, "ä"], "a": None}) == "5d4c789751acdad9"
    assert short_hash({"a": 1, "b": 2}) == short_hash({"b": 2, "a": 1})
    assert short_hash([1, 2]) != short_hash([2, 1])


class TestParts:
    def test_the_columns_stand_in_the_documented_order(self) -> None:
        extra = pa.field("shelf", pa.string())
        assert tuple(part_schema(4, [extra]).names) == (*PART_COLUMNS, "shelf")

    def test_the_length_of_the_vectors_is_part_of_the_schema(self) -> None:
        assert part_schema(4).field("embedding").type == pa.list_(pa.float16(), 4)

    @pytest.mark.parametrize("name", PART_COLUMNS)
    def test_a_column_of_the_source_with_a_name_of_ours_gets_another(self, name: str) -> None:
        assert extra_column_name(name) == f"source_{name}"
        assert extra_column_name(name.capitalize()) == name.capitalize()

    @given(
        st.builds(PartIdentity, st.text(), st.integers(0), st.integers(0)),
        st.builds(PartCounts, st.integers(0), st.integers(0), st.dictionaries(st.text(), st.integers(0))),
    )
    def test_a_footer_says_what_went_in(self, identity: PartIdentity, counts: PartCounts) -> None:
        assert read_part_footer(part_footer(identity, counts, 2)) == (identity, counts)

    @pytest.mark.parametrize("name", ["job_id", "chunk_id", "generation", "ok", "failed", "codes"])
    def test_a_footer_that_lacks_an_entry_or_has_another_value_is_none(self, name: str) -> None:
        footer = part_footer(PartIdentity("j", 1, 0), PartCounts(1, 0, {}), 2)
        damaged = [footer | {name: value} for value in ("x", "[]", "") if name != "job_id"]
        del footer[name]

        for entries in (footer, *damaged):
            with pytest.raises(ValueError):
                read_part_footer(entries)


OUR_QUEUES = ["clipfleet", "clipfleet:finishing", "_kombu.binding.celery", "unacked", "unacked_index"]


@pytest.mark.parametrize("queue", OUR_QUEUES)
def test_nothing_of_a_user_is_sent_to_a_name_of_ours_or_of_the_broker(queue: str) -> None:
    with pytest.raises(ValidationError, match="on-finished-queue"):
        make_job(on_finished_queue=queue)
