"""The group `policy`: what a policy does, before it goes live."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from clipfleet.commands.options import AsJson
from clipfleet.terminal.console import print_table, printable, say
from clipfleet.terminal.help import LABELS, Group, add_command, epilog
from clipfleet.terminal.program import EXIT_FAILED
from clipfleet.wording import counted

if TYPE_CHECKING:
    from clipfleet.moderation.checking import CheckedCondition, CheckedPolicy, CheckedRule

_SHOWN_UNUSED = 10

policy_app = typer.Typer(
    help="Explain moderation policies.",
    epilog=epilog("clipfleet policy check uploads.yaml"),
    cls=Group,
    no_args_is_help=True,
)


def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="a policy, .yaml or .json")],
    require_certified: Annotated[
        bool,
        typer.Option(
            "--require-certified",
            help="exit with 1 if a rule flags or sends to review by a threshold that is not certified",
            rich_help_panel=LABELS,
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Explain a policy, and name what is not certified and what can never matter."""
    from clipfleet.moderation.checking import checked
    from clipfleet.moderation.policy_files import read_policy_file

    found = checked(read_policy_file(file).policy)
    if as_json:
        typer.echo(json.dumps(_document(found), ensure_ascii=False))
    else:
        _print(found)
    if require_certified and found.uncertified:
        raise typer.Exit(EXIT_FAILED)


def _print(found: CheckedPolicy) -> None:
    policy = found.policy
    version = f" {policy.version}" if policy.version else ""
    typer.echo(printable(f"policy {policy.name}{version}, sha256 {policy.sha256}"))
    typer.echo(printable(f"model  {policy.model}, decode {policy.decode}, exif {policy.exif}"))
    for head in policy.heads:
        made_for = head.head.input.fingerprint or f"{head.head.input.model}, not bound to its weights"
        typer.echo(printable(f"head   {head.name} ({head.head.kind}), for vectors of {made_for}"))
    print_table(_table(found.rules))
    typer.echo(f"otherwise {policy.otherwise}; items that cannot be judged are undecided")
    for sentence in found.never_matter:
        say(sentence, style="yellow")
    if found.unused:
        shown = ", ".join(found.unused[:_SHOWN_UNUSED])
        more = f" and {len(found.unused) - _SHOWN_UNUSED:,} more" if len(found.unused) > _SHOWN_UNUSED else ""
        say(f"no rule names {shown}{more}", style="yellow")
    if found.uncertified:
        names = ", ".join(one.name for one in found.uncertified)
        say(f"not certified: {names}; see `clipfleet certify`", style="yellow")
    else:
        say(f"all thresholds of {counted(len(found.rules), 'rule')} are certified", style="green")


def _table(rules: tuple[CheckedRule, ...]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in ("rule", "action", "if", "how well the threshold is proven"):
        table.add_column(heading, overflow="fold")
    for rule in rules:
        for number, condition in enumerate(rule.conditions):
            first = (rule.name, rule.action.value) if number == 0 else ("", "and")
            cells = (*first, condition.said, _proof(condition))
            table.add_row(*(Text(printable(cell)) for cell in cells))
    return table


def _proof(condition: CheckedCondition) -> str:
    if not condition.certificates:
        return condition.evidence.source
    words = ((one, condition.evidence.of_model(one.model_fingerprint)) for one in condition.certificates)
    return "; ".join(f"{proof} for model {one.model_fingerprint} on {one.output}" for one, proof in words)


def _document(found: CheckedPolicy) -> dict[str, Any]:
    policy = found.policy
    return {
        "name": policy.name,
        "version": policy.version,
        "sha256": policy.sha256,
        "model": policy.model,
        "decode": policy.decode,
        "exif": policy.exif,
        "rules": [_rule_object(one) for one in found.rules],
        "otherwise": policy.otherwise.value,
        "not_certified": [one.name for one in found.uncertified],
        "never_matter": [*found.never_matter],
        "unused": [*found.unused],
    }


def _rule_object(rule: CheckedRule) -> dict[str, Any]:
    return {
        "name": rule.name,
        "action": rule.action.value,
        "said": rule.said,
        "is_certified": rule.is_certified,
        "conditions": [
            {
                "label_set": one.condition.label_set,
                "head": one.condition.head,
                "label": one.condition.label,
                "threshold": one.evidence.threshold,
                "test": one.evidence.test,
                "source": one.evidence.source,
                "certificates": [certificate.model_dump(mode="json") for certificate in one.certificates],
            }
            for one in rule.conditions
        ],
    }


add_command(policy_app, "clipfleet policy check uploads.yaml")(check)


@policy_app.callback()
def _group() -> None:
    """Keep the group, though it has one command."""
