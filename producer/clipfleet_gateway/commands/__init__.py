"""The commands of `clipfleet-gateway`. They parse arguments and print, nothing else."""

from __future__ import annotations

from clipfleet.terminal.help import add_command
from clipfleet.terminal.program import new_app, run_program
from clipfleet_gateway.commands.keys import keys_app
from clipfleet_gateway.commands.policies import policies_app
from clipfleet_gateway.commands.serve import serve
from clipfleet_gateway.settings import GatewaySettings

app = new_app(
    "Serve clipfleet over HTTP, to programs in any language, in the shapes of OpenAI and Hugging Face.",
    "clipfleet-gateway serve --port 8080",
)
add_command(app, "clipfleet-gateway serve --host 0.0.0.0 --port 8080")(serve)
app.add_typer(keys_app, name="keys")
app.add_typer(policies_app, name="policies")


def main() -> None:
    """Run the command line, see `run_program`."""
    run_program(app, "clipfleet-gateway", GatewaySettings, has_all_settings=False)
