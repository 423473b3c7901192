import pytest

from tests.truth.served import MS, Service


def test_a_sleep_is_an_other_wait(plain: Service) -> None:
    answer = plain.get("/sleep")
    account = plain.account(answer)
    slept = (answer.json["end"] - answer.json["start"]) / MS
    assert account.ms("other_wait") == pytest.approx(slept, abs=max(1, 0.02 * slept))
    assert (account.method, account.route, account.status) == ("GET", "/sleep", 200)
