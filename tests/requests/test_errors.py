"""The error codes are an interface: each one says whether a request may be retried and may have taken effect."""

import pathlib
import subprocess
import sys

from kvd.protocol.errors import CODES

# Append only. (code, may be retried unchanged, may have taken effect)
DOCUMENTED = [
    ("bad_request", False, False),
    ("unsupported_protocol", False, False),
    ("unauthenticated", False, False),
    ("forbidden", False, False),
    ("not_found", False, False),
    ("not_a_number", False, False),
    ("conflict", False, False),
    ("outcome_unknown", False, True),
    ("snapshot_gone", False, False),
    ("too_large", False, False),
    ("reply_too_large", False, True),
    ("out_of_memory", True, False),
    ("no_space", True, False),
    ("busy", True, False),
    ("shutting_down", True, False),
    ("internal", False, True),
]


def test_the_codes_keep_their_documented_meaning() -> None:
    assert [(code.code, code.retryable, code.maybe_applied) for code in CODES.values()] == DOCUMENTED
    assert list(CODES) == [code for code, _, _ in DOCUMENTED]


def test_no_error_is_retryable_that_may_have_taken_effect() -> None:
    assert not [code.code for code in CODES.values() if code.retryable and code.maybe_applied]


def test_each_code_says_what_it_means() -> None:
    assert all(len(code.meaning) > 10 for code in CODES.values())


def test_the_document_lists_the_same_codes() -> None:
    document = (pathlib.Path(__file__).parents[2] / "docs/protocol.md").read_text()
    for code, retryable, applied in DOCUMENTED:
        (line,) = [line for line in document.splitlines() if line.startswith(f"| `{code}` |")]
        assert line.endswith(f"| {'yes' if retryable else 'no'} | {'yes' if applied else 'no'} |")


def test_a_client_can_read_the_codes_without_importing_anything_heavy() -> None:
    probe = "import sys, kvd.protocol.errors, kvd.protocol.address; print({'msgspec', 're', 'typing'} & {*sys.modules})"
    root = str(pathlib.Path(__file__).parents[2])
    result = subprocess.run(  # noqa: S603 (our own interpreter)
        [sys.executable, "-S", "-c", probe], env={"PYTHONPATH": root}, capture_output=True, text=True, check=True
    )
    assert result.stdout == "set()\n"
