"""The addresses that alerts refuse, and the automations that they create.

tests/e2e/test_prefect.py checks on a server that the alerts are sent.
"""

from datetime import timedelta
from uuid import uuid4

import pytest
from apprise import Apprise
from prefect.events.actions import ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import EventTrigger
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Completed

from common.config.loading import ConfigError
from flows.alerts import (
    END_EVENTS,
    HEARTBEAT_TIMEOUT,
    apply,
    check_addresses,
    mail_url,
    make_automations,
)
from tests.factories.support import answer_with, serving

HEARTBEAT = timedelta(seconds=180)  # Prefect's default


@pytest.mark.parametrize(
    ("webhook", "email"),
    [("ftp://host/T0KEN", None), ("https:///T0KEN", None), (None, "nobody"), (None, "@host")],
)
def test_an_invalid_address_is_refused(webhook: str | None, email: str | None) -> None:
    with pytest.raises(ConfigError, match=r"^--(webhook|email): ") as refused:
        check_addresses(webhook, email)
    assert "T0KEN" not in str(refused.value)


def test_an_invalid_mail_server_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLICKMILL_SMTP", "smtp://user:PASSW0RD@host")
    with pytest.raises(ConfigError, match=r"^CLICKMILL_SMTP: not a mail server") as refused:
        check_addresses(None, "ops@example.com")
    assert "PASSW0RD" not in str(refused.value)


@pytest.mark.parametrize(
    ("server", "host", "port", "sender"),
    [
        (None, "127.0.0.1", 25, "ops+night@example.com"),
        (
            "mailtos://user:word@mail.example.com:587?mode=starttls&from=mill@example.com",
            "mail.example.com",
            587,
            "mill@example.com",
        ),
    ],
)
def test_apprise_reads_the_mail_server(
    monkeypatch: pytest.MonkeyPatch, server: str | None, host: str, port: int, sender: str
) -> None:
    monkeypatch.delenv("CLICKMILL_SMTP", raising=False)
    if server:
        monkeypatch.setenv("CLICKMILL_SMTP", server)
    mail = Apprise.instantiate(mail_url("ops+night@example.com"))
    assert (mail.smtp_host, mail.port, mail.from_addr[1]) == (host, port, sender)
    assert [address for _, address in mail.targets] == ["ops+night@example.com"]


@pytest.mark.parametrize(
    ("status", "error", "remedy"),
    [
        (401, ConfigError, "set PREFECT_API_AUTH_STRING"),
        (422, ConfigError, "the same version of Prefect"),
        (500, ConnectionError, "see the server's log"),
    ],
)
def test_an_answer_of_the_server_is_reported_with_a_remedy(
    status: int, error: type[Exception], remedy: str
) -> None:
    with serving(answer_with(b'{"detail": "T0KEN"}', status=status)) as port:
        url = f"http://127.0.0.1:{port}/api"
        message = f"^the Prefect server at {url} answered {status}"
        with (
            temporary_settings({PREFECT_API_URL: url}),
            pytest.raises(error, match=message) as raised,
        ):
            apply("https://chat.example/T0KEN", None, timedelta(hours=26))
    assert remedy in str(raised.value)
    assert "T0KEN" not in str(raised.value)


def test_a_run_that_ended_under_any_name_is_not_marked_as_crashed() -> None:
    """Nightly runs end under names of their own, which a list of Prefect's states would miss."""
    *alerts, silent = make_automations(
        lambda text: [SendNotification(block_document_id=uuid4(), body=text)], timedelta(hours=26)
    )
    (crash,) = silent.actions
    assert isinstance(crash, ChangeFlowRunState)
    for automation in alerts:
        assert all(isinstance(action, SendNotification) for action in automation.actions)
    assert isinstance(silent.trigger, EventTrigger)
    (expected,) = silent.trigger.expect
    assert expected.endswith(".*")
    prefix = expected.removesuffix("*")
    for event in END_EVENTS | {f"prefect.flow-run.{Completed().name}"}:
        assert event.startswith(prefix)
    assert silent.trigger.within == HEARTBEAT_TIMEOUT
    assert HEARTBEAT_TIMEOUT > 3 * HEARTBEAT
