"""The commands of `clipfleet`, one module per group. They parse arguments and print, nothing else."""

from __future__ import annotations

from clipfleet.commands import jobs, results, submitting, watching
from clipfleet.commands.evaluating.command import evaluate
from clipfleet.commands.heads import heads_app
from clipfleet.commands.marks import thresholds
from clipfleet.commands.marks.storing import marks_app
from clipfleet.commands.moderating import reviewing
from clipfleet.commands.moderating.moderate import moderate
from clipfleet.commands.moderating.policies import policy_app
from clipfleet.commands.moderating.tail import tail
from clipfleet.commands.one_source import OneSourceCommand
from clipfleet.commands.reports.command import report
from clipfleet.commands.searching.diff import diff
from clipfleet.commands.searching.duplicates import duplicates
from clipfleet.commands.searching.search import search
from clipfleet.commands.stores.backfill import backfill
from clipfleet.commands.stores.group import stores_app
from clipfleet.commands.webhooks.group import webhooks_app
from clipfleet.settings import Settings
from clipfleet.terminal.help import add_command
from clipfleet.terminal.program import new_app, run_program

app = new_app(
    "Label and embed large sets of images with CLIP: exactly one result row per image.",
    "clipfleet classify photos --labels cat,dog -o results/photos",
)

for _function, _example in (
    (submitting.classify, "clipfleet classify photos --labels cat,dog -o results/photos"),
    (submitting.embed, "clipfleet embed 'shards/*.tar' -o results/vectors"),
    (submitting.embed_text, "clipfleet embed-text queries.txt -o results/queries"),
    (moderate, "clipfleet moderate uploads --policy uploads.yaml -o results/uploads"),
    (backfill, "clipfleet backfill s3://photos/ --store s3://vectors/photos"),
):
    add_command(app, _example, cls=OneSourceCommand)(_function)

for _function, _example in (
    (submitting.relabel, "clipfleet relabel results/vectors --labels tree,sea -o results/sea"),
    (submitting.run, "clipfleet run job.yaml -o results/photos"),
    (jobs.status, "clipfleet status last"),
    (jobs.jobs, "clipfleet jobs --limit 10"),
    (jobs.workers, "clipfleet workers"),
    (watching.watch, "clipfleet watch nightly-2026-11-30"),
    (results.results, "clipfleet results results/photos --label cat --sort score --desc"),
    (results.show, "clipfleet show cats/1.jpg --job results/photos"),
    (report, "clipfleet report results/photos -o report.html"),
    (results.export, "clipfleet export results/photos --layout csv --to photos-csv"),
    (search, "clipfleet search 'a red car' s3://vectors/photos --top 50"),
    (duplicates, "clipfleet duplicates results/vectors --threshold 0.97"),
    (diff, "clipfleet diff s3://vectors/photos@2026-11-30 s3://vectors/photos"),
    (reviewing.explain, "clipfleet explain dec-20261203-3f9a1c2b7d4e-0-17 results/uploads"),
    (
        reviewing.verdict,
        "clipfleet verdict dec-20261203-3f9a1c2b7d4e-0-17 upheld --place out",
    ),
    (reviewing.verdicts, "clipfleet verdicts results/uploads --sample certify.csv -o marks.csv"),
    (reviewing.prune, "clipfleet prune s3://moderation/decisions"),
    (tail, "clipfleet tail --status flag --status review"),
    (thresholds.sample, "clipfleet sample results/photos --purpose fit -o fit.csv"),
    (thresholds.calibrate, "clipfleet calibrate results/photos --marks fit.csv -o labels.yaml"),
    (thresholds.certify, "clipfleet certify results/photos --labels labels.yaml --marks m.csv"),
    (evaluate, "clipfleet evaluate wds_cifar10 --split test"),
    (jobs.cancel, "clipfleet cancel nightly-2026-11-30"),
    (jobs.pause, "clipfleet pause nightly-2026-11-30"),
    (jobs.resume, "clipfleet resume nightly-2026-11-30"),
    (jobs.retry, "clipfleet retry results/photos --codes timeout,server_error"),
    (jobs.rebuild, "clipfleet rebuild results/photos"),
):
    add_command(app, _example)(_function)
app.add_typer(marks_app, name="marks")
app.add_typer(heads_app, name="head")
app.add_typer(policy_app, name="policy")
app.add_typer(stores_app, name="store")
app.add_typer(webhooks_app, name="webhooks")


def main() -> None:
    """Run the command line, see `run_program`."""
    run_program(app, "clipfleet", Settings, has_all_settings=False)
