"""A daemon that stops answers what has come whole (the original cut it off), and tells the others that nothing ran."""

import signal

from tests.harness.http_peer import http_request
from tests.harness.waiting import DEADLINE_S
from tests.http.conftest import Start


def test_fault_10_requests_that_have_come_are_answered_and_half_ones_told_that_they_did_not_run(start: Start) -> None:
    daemon = start()
    with daemon.connect() as whole, daemon.connect() as half, daemon.connect() as idle, daemon.connect() as watching:
        watching.send(b"GET /v2/watch HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert watching.head()[0] == 200
        assert idle.ask("GET", "/v1/none").status == 404
        half.send(http_request("PUT", "/v1/half", b"x" * 100)[:-50])
        assert whole.ask("PUT", "/v1/first", b"1").status == 201  # the half one has come too by now
        whole.send(b"".join(http_request("PUT", f"/v1/k{number}", b"x") for number in range(50)))
        answers = [whole.response()]
        daemon.process.send_signal(signal.SIGTERM)
        try:
            while len(answers) < 50:
                answers.append(whole.response())
        except EOFError:
            pass
        assert {answer.status for answer in answers} <= {201, 503}
        refused = half.response()
        assert (refused.status, refused.headers["connection"]) == (503, "close")
        assert b"did not run" in refused.body
        for client in (whole, half, idle):
            assert client.is_over()
    assert daemon.process.wait(DEADLINE_S) == 0
