"""A live daemon beside its own OpenAPI document: schemathesis makes valid and invalid requests from the schemas."""

import schemathesis
from hypothesis import HealthCheck, settings

from kvd.http.openapi import document
from tests.harness.http_daemon import HttpDaemon

schema = schemathesis.openapi.from_dict(document()).exclude(path="/v2/watch")  # its reply has no end


@schema.parametrize()
@settings(
    max_examples=15, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)  # fmt: skip
def test_the_daemon_answers_as_its_document_says(case: schemathesis.Case, shared: HttpDaemon) -> None:
    response = case.call(base_url=f"http://127.0.0.1:{shared.port}")
    assert response.status_code < 500 or response.status_code == 503
    case.validate_response(response, checks=[
        schemathesis.checks.not_a_server_error,
        schemathesis.specs.openapi.checks.status_code_conformance,
        schemathesis.specs.openapi.checks.content_type_conformance,
        schemathesis.specs.openapi.checks.response_schema_conformance,
    ])  # fmt: skip
