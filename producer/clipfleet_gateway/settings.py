"""Settings of the gateway, from the environment (prefix `CLIPFLEET_`)."""

from __future__ import annotations

from pydantic import Field

from clipfleet.contract.policies import MAX_KEEP_DAYS
from clipfleet.errors import UsageError
from clipfleet.settings import CommaSeparated, Settings

_FOLDER = "gateway"  # below the first folder that workers may write to
_MEBIBYTE = 1024 * 1024


class GatewaySettings(Settings):
    """All of the gateway's settings; docs/reference/settings.md lists them."""

    output_roots: CommaSeparated[str] = Field((), description="folders below which results may be written")
    gateway_output: str | None = Field(
        None,
        description="folder or s3://BUCKET/PREFIX of the gateway's own: keys, files, batches and results of "
        "jobs; workers must be allowed to write there. Default: `gateway` below the first output root",
    )
    gateway_hosts: CommaSeparated[str] = Field(
        (),
        description="names by which clients reach the gateway, without a port; requests for others are "
        "refused. IP addresses, localhost and the name of this machine always do",
    )
    gateway_file_bytes: int = Field(200 * _MEBIBYTE, ge=1, description="upper bound of an uploaded file")
    gateway_batch_requests: int = Field(
        50_000, ge=1, description="upper bound of the lines of a batch, and of their inputs"
    )
    gateway_requests_per_minute: int = Field(
        6_000, ge=1, description="upper bound of one key's requests in a minute, per gateway"
    )
    gateway_keep_decisions_days: int | None = Field(
        None,
        ge=1,
        le=MAX_KEEP_DAYS,
        description="how long records of decisions are kept in the gateway's place. Default: for ever",
    )

    def require_gateway_output(self) -> str:
        """Return where the gateway keeps what it must not lose.

        Raises:
            UsageError: neither is set.
        """
        if self.gateway_output is not None:
            return self.gateway_output
        if not self.output_roots:
            raise UsageError(
                "CLIPFLEET_GATEWAY_OUTPUT is not set: name a folder or s3://BUCKET/PREFIX that the workers "
                "may write to, for files, batches and results"
            )
        return f"{self.output_roots[0].rstrip('/')}/{_FOLDER}"
