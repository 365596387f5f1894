"""A stopping daemon answers complete requests (the first implementation cut them off), and rejects incomplete ones."""

import signal

from tests.harness.http_peer import http_request
from tests.harness.waiting import DEADLINE_S
from tests.http.conftest import Start


def test_fault_10_a_stop_answers_complete_requests_and_rejects_incomplete_ones(start: Start) -> None:
    daemon = start()
    with (
        daemon.connect() as complete,
        daemon.connect() as incomplete,
        daemon.connect() as idle,
        daemon.connect() as watching,
    ):
        watching.send(b"GET /v2/watch HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert watching.head()[0] == 200
        assert idle.ask("GET", "/v1/none").status == 404
        incomplete.send(http_request("PUT", "/v1/half", b"x" * 100)[:-50])
        assert complete.ask("PUT", "/v1/first", b"1").status == 201  # the incomplete request has arrived by now, too
        complete.send(b"".join(http_request("PUT", f"/v1/k{number}", b"x") for number in range(50)))
        answers = [complete.response()]
        daemon.process.send_signal(signal.SIGTERM)
        try:
            while len(answers) < 50:
                answers.append(complete.response())
        except EOFError:
            pass
        assert {answer.status for answer in answers} <= {201, 503}
        error = incomplete.response()
        assert (error.status, error.headers["connection"]) == (503, "close")
        assert b"did not run" in error.body
        for client in (complete, incomplete, idle):
            assert client.is_over()
    assert daemon.process.wait(DEADLINE_S) == 0
