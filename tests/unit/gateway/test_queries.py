"""Parameters in the URL of a request."""

from __future__ import annotations

import pytest
from aiohttp.test_utils import make_mocked_request

from clipfleet_gateway.errors import ApiError
from clipfleet_gateway.shapes.jobs import RowsQuery
from clipfleet_gateway.web.queries import query_of


def test_a_parameter_of_rows_that_is_unknown_is_refused() -> None:
    request = make_mocked_request("GET", "/v1/jobs/job_1/rows?lable=cat")

    with pytest.raises(ApiError, match="lable: the name is unknown") as caught:
        query_of(request, RowsQuery)

    assert (caught.value.status, caught.value.param) == (400, "lable")
