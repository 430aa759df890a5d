"""Heads of a job: which are read, and which model they go with."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipfleet.contract.heads import HeadInput
from clipfleet.errors import UsageError
from clipfleet.heads.choosing import read_heads, require_length, require_model
from clipfleet.heads.files import HeadFile, write_head
from clipfleet.terminal.console import with_options
from tests.support.heads import head_file


def of_model(model: str, **read: str) -> HeadFile:
    return head_file(4, 2, input=HeadInput(dim=4, model=model, **read))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_head(head_file(4, 2), tmp_path / "taste.head.safetensors")
    return tmp_path / "taste.head.safetensors"


class TestRead:
    @pytest.mark.parametrize("kind", [str, Path])
    def test_one_path_is_one_head(self, path: Path, kind: type) -> None:
        (found,) = read_heads(kind(path))

        assert found == head_file(4, 2)
        assert read_heads([kind(path)]) == (found,) == read_heads(found)

    def test_several_keep_their_order(self, path: Path) -> None:
        other = head_file(4, 2, name="mood")

        assert [one.head.name for one in read_heads([other, path])] == ["mood", "taste"]
        assert read_heads(()) == ()

    def test_two_of_one_name_are_refused(self, path: Path) -> None:
        with pytest.raises(UsageError, match="another head is also called 'taste'"):
            read_heads([path, head_file(4, 2, seed=1)])

    @pytest.mark.parametrize(
        ("given", "words"),
        [("", "path of a head is empty"), ("s3://b/x.head.safetensors", "a head is a local file"),
         ("nothing.safetensors", "No such file")],
    )  # fmt: skip
    def test_what_is_no_file(self, given: str, words: str) -> None:
        with pytest.raises(UsageError, match=words):
            read_heads(given)


class TestModel:
    @pytest.mark.parametrize(
        ("of_head", "of_job"),
        [
            ("demo", "demo"),
            ("ViT-B-32", "ViT-B-32:datacomp_xl_s13b_b90k"),  # as another program may write it
            ("local-dir:/models/a", "ViT-B-32:datacomp_xl_s13b_b90k"),  # workers compare the weights
            ("demo", "local-dir:/models/a"),
            ("ViT-B-32:/models/a.bin", "demo"),
        ],
    )
    def test_the_same_or_a_local_one_is_accepted(self, of_head: str, of_job: str) -> None:
        require_model([of_model(of_head)], of_job)

    @pytest.mark.parametrize(
        ("of_head", "of_job"),
        [
            ("demo", "hf-hub:org/name"),
            ("hf-hub:org/name", "demo"),
            ("ViT-B-32:openai", "demo"),
            ("x y", "demo"),
        ],
    )
    def test_another_one_is_refused_with_the_way_out(self, of_head: str, of_job: str) -> None:
        with pytest.raises(UsageError, match=f"head 'taste' takes vectors of {of_head}") as refused:
            require_model([of_model("demo" if of_job == "demo" else of_job), of_model(of_head)], of_job)

        assert f"give --model {of_head}, or" in with_options(str(refused.value))

    @pytest.mark.parametrize(
        ("option", "fitted", "given"), [("decode", "exact", "fast"), ("exif", "apply", "ignore")]
    )
    def test_images_that_are_read_otherwise_are_refused(self, option: str, fitted: str, given: str) -> None:
        head = of_model("demo", **{option: fitted})

        with pytest.raises(UsageError, match=f"were read with `{option}=` {fitted}") as refused:
            require_model([head], "demo", **{option: given})

        assert f"give --{option} {fitted}, or" in with_options(str(refused.value))
        require_model([head], "demo", **{option: fitted})
        require_model([of_model("demo")], "demo", **{option: given})  # it does not say


def test_a_head_for_vectors_of_another_length_is_refused() -> None:
    require_length([of_model("demo")], "demo", 4)

    with pytest.raises(UsageError, match="length 4, these have length 5"):
        require_length([of_model("demo")], "demo", 5)
