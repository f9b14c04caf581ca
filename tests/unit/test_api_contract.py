"""Requests made from the API's own OpenAPI schema, good ones and bad ones: no answer may be a 5xx, and every
answer has the form that the schema promises."""

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance
from support.service import StandIn, application

service = StandIn()


async def _state(access):
    return {
        "version": 7, "encoder": "fake", "placement": "shared", "challenger": None, "challenger_share": 0,
        "shadow_share": 0, "routed_queries": 0, "drift": None, "refused": {},
    }  # fmt: skip


async def _experts():
    return []


service.state, service.experts = _state, _experts
schema = schemathesis.openapi.from_asgi("/openapi.json", application(service, allow_anonymous=True))


@pytest.mark.filterwarnings("ignore")
@schema.parametrize()
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_api_keeps_to_its_schema(case):
    # Which values of these fit depends on the encoder that is served: a 422 says so.
    fields = ("dimensions", "input_type", "truncate")
    depends = isinstance(case.body, dict) and any(case.body.get(field) for field in fields)
    case.call_and_validate(excluded_checks=[positive_data_acceptance] if depends else None)
