"""What a row's error says, and what it does not say."""

from pathlib import Path

import pytest

from graftwork import errors
from graftwork.serve.outcomes import failure, public

ROOT = Path("registry-root").resolve()
EXPECTED = {
    errors.NotFound: "not_found",
    errors.Conflict: "conflict",
    errors.InputTooLong: "too_long",
    errors.PackageError: "damaged",
    errors.UserError: "invalid",
    errors.DataError: "invalid",
    errors.CompositionError: "invalid",
    errors.AdapterError: "invalid",
    errors.BackboneError: "invalid",
    errors.RoutingError: "internal",
    errors.GraftworkError: "internal",
    MemoryError: "internal",
}


@pytest.mark.parametrize(("kind", "code"), EXPECTED.items(), ids=lambda value: getattr(value, "__name__", value))
def test_every_error_has_its_code(kind: type[Exception], code: str) -> None:
    assert failure(kind("why"), ROOT)["error"]["code"] == code


def test_our_own_messages_are_shown_and_others_are_only_logged(caplog: pytest.LogCaptureFixture) -> None:
    assert failure(errors.NotFound("no such thing"), ROOT) == {
        "error": {"code": "not_found", "message": "no such thing"}
    }
    assert not caplog.records
    message = failure(KeyError("inner secret"), ROOT)["error"]["message"]
    assert message.startswith("this row could not be answered; the log has it as ")
    assert "secret" not in message
    assert message.rpartition(" ")[2] in caplog.text
    assert "inner secret" in caplog.text
    assert failure(errors.RoutingError("nested"), ROOT)["error"]["message"].startswith("nested; the log has it as ")


def test_several_problems_are_one_line_and_the_registrys_place_is_not_told() -> None:
    assert failure(errors.DataError(["one", "two"]), ROOT)["error"]["message"] == "one; two"
    assert (
        public(f"no package 'a' in the registry {ROOT}; it is empty", ROOT)
        == "no package 'a' in the registry; it is empty"
    )
    assert public(f"{ROOT}/a/1/graft.json: is missing", ROOT) == "a/1/graft.json: is missing"
    assert public(f"is a link to {ROOT}", ROOT) == "is a link to registry"


def test_messages_can_be_sent_whatever_a_client_wrote() -> None:
    assert public("half \ud800 pair", ROOT) == "half \\ud800 pair"
    long = public("x" * 5000, ROOT)
    assert len(long) == 2000
    assert long.endswith("x ...")
