"""What a policy check says: what is certified, and which rules can never matter."""

from __future__ import annotations

import pytest

from clipfleet.contract.heads import HeadKind
from clipfleet.contract.policies import Condition, Rule
from clipfleet.moderation.checking import checked
from tests.support.heads import head_file
from tests.support.policies import make_policy, of_label, rule

TASTE = head_file(4, 1, name="taste", kind=HeadKind.REGRESS, labels=("taste",)).of_job
KINDS = head_file(4, 2, name="kinds", labels=("photo", "drawing")).of_job


def never_matter(*rules: Rule) -> list[str]:
    named = [one.model_copy(update={"name": "abcdef"[number]}) for number, one in enumerate(rules)]
    found = checked(make_policy(*named, heads=(TASTE, KINDS))).never_matter
    return [sentence.partition(":")[0] for sentence in found]


HIGH, LOW = of_label("cat", at_least=0.9), of_label("cat", at_least=0.5)
CHEAP, UGLY = Condition(head="taste", below=6), Condition(head="taste", below=4)
PHOTO, DRAWING = (Condition(head="kinds", label=one) for one in ("photo", "drawing"))


@pytest.mark.parametrize(
    ("rules", "found"),
    [
        ((rule("flag", HIGH), rule("review", LOW)), []),
        ((rule("review", LOW), rule("flag", HIGH)), []),
        ((rule("flag", LOW), rule("review", HIGH)), ["b changes no decision"]),
        ((rule("review", HIGH), rule("flag", LOW)), ["a changes no decision"]),
        ((rule("flag", of_label("cat")), rule("flag", LOW)), ["b changes no decision"]),
        ((rule("allow", LOW), rule("flag", HIGH)), ["b is never read"]),
        ((rule("flag", HIGH), rule("allow", LOW)), []),
        ((rule("review", HIGH), rule("allow", of_label("dog")), rule("flag", LOW)), []),
        ((rule("flag", CHEAP), rule("review", UGLY)), ["b changes no decision"]),
        ((rule("flag", UGLY), rule("review", CHEAP)), []),
        ((rule("flag", LOW), rule("review", HIGH, CHEAP)), ["b changes no decision"]),
        ((rule("flag", LOW, CHEAP), rule("review", HIGH)), []),
        ((rule("flag", HIGH, of_label("cat", below=0.5)),), ["a never holds"]),
        ((rule("flag", PHOTO, DRAWING),), ["a never holds"]),
        ((rule("flag", PHOTO), rule("review", DRAWING)), []),
        ((rule("flag", PHOTO), rule("review", PHOTO, LOW)), ["b changes no decision"]),
    ],
)
def test_rules_that_never_matter(rules: tuple[Rule, ...], found: list[str]) -> None:
    assert never_matter(*rules) == found


def test_what_no_rule_names() -> None:
    found = checked(make_policy(rule("flag", HIGH), labels=("cat", "dog", "emu"), heads=(TASTE,)))

    assert found.unused == ("things/dog", "things/emu", "head taste")


def test_thresholds_without_a_certificate_are_named_but_for_exceptions() -> None:
    found = checked(
        make_policy(
            rule("flag", HIGH, name="cats"),
            rule("allow", of_label("dog")),
            rule("review", UGLY),
            heads=(TASTE,),
        )
    )

    assert [one.name for one in found.uncertified] == ["cats", "rule 3"]
    assert [one.said for one in found.rules] == [
        "flag if things/cat >= 0.9", "allow if things/dog >= 0.5", "review if head taste < 4",
    ]  # fmt: skip
