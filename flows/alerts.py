"""Alerts about nightly runs: automations on the Prefect server, which sends them.

An automation is recognised by its name, so a second call of `apply` changes it and adds no other.
Addresses may contain tokens. They are saved in Prefect's blocks, which Prefect shows masked, and
nothing here prints or raises them.
"""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from urllib.parse import quote, urlsplit
from uuid import UUID

import httpx
from prefect.blocks.core import Block
from prefect.blocks.notifications import SlackWebhook
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import CallWebhook, ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import get_current_settings
from prefect.types import SecretDict
from pydantic import SecretStr

from common.config.loading import ConfigError
from common.masking import mask_passwords
from flows.nightly.record import STATES
from flows.prefect_server import ensure_server

PREFIX = "clickmill: "
# Names that earlier versions gave to automations. These are deleted, because they wait for states
# that no longer occur.
FORMER_NAMES = ("a night kept the old model", "a night is missing", "a run is dead")

RUN_EVENT = "prefect.flow-run."
END_EVENTS = {f"{RUN_EVENT}{state}" for state in STATES.values()}
FAILURE_EVENTS = {f"{RUN_EVENT}{state}" for state in ("Failed", "Crashed", "TimedOut")}
# Three heartbeats of a run, unless PREFECT_FLOWS_HEARTBEAT_FREQUENCY is more than 180 s.
HEARTBEAT_TIMEOUT = timedelta(minutes=10)
LOCAL_SMTP = "mailto://127.0.0.1:25?mode=insecure"
# Slack and others make links and mentions of these characters, and a message may contain values.
AS_PLAIN_TEXT = "replace('<', '‹')|replace('>', '›')|replace('@', '(at)')|replace('](', '] (')"
RUN_STATE_TEXT = (
    "{{ flow.name }} {{ flow_run.name }}: {{ flow_run.state.name }}: "
    f"{{{{ flow_run.state.message|{AS_PLAIN_TEXT} }}}} "
    "{{ (flow_run|ui_url) or '' }}"
)

Action = CallWebhook | SendNotification
MakeActions = Callable[[str], list[Action]]


def apply(webhook: str | None, email: str | None, max_gap: timedelta) -> list[str]:
    """Create the automations on the configured Prefect server, or bring them up to date.

    Args:
        webhook: A URL that receives JSON with the key `text`.
        email: An address.
        max_gap: A nightly run that ends later than this after the one before it is missing.

    Returns:
        The names of the automations.

    Raises:
        ConfigError: No server is configured, the server refuses, or an address is invalid.
        ConnectionError: The server does not answer, or reports an error of its own.
    """
    check_addresses(webhook, email)
    if get_current_settings().api.url is None:
        raise ConfigError(
            "no Prefect server is configured that could send alerts; "
            "start one (prefect server start) or set PREFECT_API_URL"
        )
    url = ensure_server()
    try:
        automations = make_automations(save_receivers(webhook, email), max_gap)
        with get_client(sync_client=True) as client:
            for name in FORMER_NAMES:
                for former in client.read_automations_by_name(PREFIX + name):
                    client.delete_automation(former.id)
            for automation in automations:
                create_or_update(client, automation)
    except PrefectHTTPStatusError as error:
        raise _describe_refusal(url, error.response) from None
    return [automation.name for automation in automations]


def _describe_refusal(url: str, answer: httpx.Response) -> ConfigError | ConnectionError:
    """Return the error for an answer of the server that is not a success.

    The body of the answer is left out, because it may repeat the addresses.
    """
    text = (
        f"the Prefect server at {mask_passwords(url)} answered "
        f"{answer.status_code} {answer.reason_phrase}"
    )
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        return ConfigError(f"{text}; set PREFECT_API_AUTH_STRING to the server's value")
    if answer.is_server_error:
        return ConnectionError(f"{text}; try again when it is less busy, or see the server's log")
    return ConfigError(f"{text}; does it have the same version of Prefect as this machine?")


def check_addresses(webhook: str | None, email: str | None) -> None:
    """Check the receivers' addresses and the mail server.

    Raises:
        ConfigError: One of them is invalid. The message does not repeat what may contain a token.
    """
    if webhook:
        parts = urlsplit(webhook)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(
                "--webhook: not a URL that begins with http:// or https:// and names a host"
            )
    if email and not all(email.partition("@")):
        raise ConfigError(f"--email: {email!r} is not an address")
    if urlsplit(mail_server()).scheme not in ("mailto", "mailtos"):
        raise ConfigError(
            "CLICKMILL_SMTP: not a mail server; "
            "write mailtos://USER:PASSWORD@HOST:PORT?mode=starttls (Apprise's notation)"
        )


def mail_server() -> str:
    """Return the mail server as an Apprise URL: CLICKMILL_SMTP, or the one on this machine."""
    return os.environ.get("CLICKMILL_SMTP", LOCAL_SMTP)


def mail_url(address: str) -> str:
    """Return the Apprise URL that sends mail to an address.

    The sender is the `from` of CLICKMILL_SMTP, or else the same address.
    """
    server, _, options = mail_server().partition("?")
    return f"{server}?from={quote(address)}&to={quote(address)}&format=text&{options}"


def save_receivers(webhook: str | None, email: str | None) -> MakeActions:
    """Save the addresses on the server.

    Returns:
        A function that returns the actions which send a text, a template of Prefect, to them.
    """
    webhook_id, email_id = None, None
    if webhook:
        headers = SecretDict({"content-type": "application/json"})
        webhook_id = save_block(
            "clickmill-webhook", Webhook(url=SecretStr(webhook), headers=headers)
        )
    if email:
        # Of the blocks that come with Prefect, this one passes any URL that is not Slack's to
        # Apprise unchanged, so also that of a mail server.
        email_id = save_block("clickmill-email", SlackWebhook(url=SecretStr(mail_url(email))))

    def make_actions(text: str) -> list[Action]:
        actions: list[Action] = []
        if webhook_id:
            payload = "{% set text %}" + text + '{% endset %}{"text": {{ text|tojson }}}'
            actions.append(CallWebhook(block_document_id=webhook_id, payload=payload))
        if email_id:
            actions.append(
                SendNotification(block_document_id=email_id, subject="clickmill", body=text)
            )
        return actions

    return make_actions


def save_block(name: str, block: Block) -> UUID:
    """Save a block on the server under a name, and return its id."""
    block_id = block.save(name, overwrite=True)
    assert isinstance(block_id, UUID)
    return block_id


def make_automations(make_actions: MakeActions, max_gap: timedelta) -> list[AutomationCore]:
    """Return the automations.

    Args:
        make_actions: Returns the actions that send a text.
        max_gap: A nightly run that ends later than this after the one before it is missing.
    """
    failed = trigger_on_runs("nightly", "train-dlrm", expect=FAILURE_EVENTS)
    rejected = trigger_on_runs("nightly", expect={f"{RUN_EVENT}{STATES['rejected']}"})
    # The end of a run starts the time within which the next one must end. The first period starts
    # when the automation is created.
    missing = trigger_on_runs(
        "nightly",
        after=END_EVENTS,
        expect=END_EVENTS,
        posture=Posture.Proactive,
        within=max_gap,
    )
    # A machine that loses its power leaves its run in the state Running. Any event of the run
    # counts as a sign of life: a list of states would miss a run that ends under another name.
    silent = trigger_on_runs(
        "nightly",
        "train-dlrm",
        after={f"{RUN_EVENT}heartbeat"},
        expect={f"{RUN_EVENT}*"},
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        within=HEARTBEAT_TIMEOUT,
    )
    crash = ChangeFlowRunState(
        state=StateType.CRASHED,
        name="Crashed",
        force=False,
        message=f"no heartbeat for {HEARTBEAT_TIMEOUT / timedelta(minutes=1):g} min",
    )
    hours = f"{max_gap / timedelta(hours=1):g} h"
    return [
        make_automation(
            "a run failed",
            "A run of nightly or train-dlrm failed or crashed.",
            failed,
            make_actions(RUN_STATE_TEXT),
        ),
        make_automation(
            "a nightly run rejected its model or data",
            "The new model did not pass, or the data did not. The champion stays in production.",
            rejected,
            make_actions(RUN_STATE_TEXT),
        ),
        make_automation(
            "a nightly run is missing",
            f"No nightly run ended within {hours}.",
            missing,
            make_actions(f"nightly: no nightly run has ended within {hours}"),
        ),
        make_automation(
            "a run stopped without a final state",
            "A run sends no heartbeats any more, so it is marked as crashed.",
            silent,
            [crash],
        ),
    ]


def trigger_on_runs(*flows: str, **conditions: Any) -> EventTrigger:
    """Return a trigger on events of runs of these flows, whether deployed or started by hand."""
    related: dict[str, str | list[str]] = {
        "prefect.resource.role": "flow",
        "prefect.resource.name": list(flows),
    }
    return EventTrigger(
        match={"prefect.resource.id": f"{RUN_EVENT}*"}, match_related=related, **conditions
    )


def make_automation(
    name: str, description: str, trigger: EventTrigger, actions: list[Any]
) -> AutomationCore:
    """Return an automation with our prefix to its name."""
    return AutomationCore(
        name=PREFIX + name, description=description, trigger=trigger, actions=actions
    )


def create_or_update(client: SyncPrefectClient, automation: AutomationCore) -> None:
    """Create an automation, or change the one of the same name.

    One that is already the same is left alone, because a change would restart its waiting times.
    """
    # An update sends only the fields that were set; this sets them all.
    wanted = AutomationCore(**automation.model_dump(exclude={"owner_resource"}))
    present = client.read_automations_by_name(automation.name)
    if not present:
        client.create_automation(wanted)
        return
    before = present[0].model_dump(exclude={"id", "owner_resource"})
    if before != wanted.model_dump(exclude={"owner_resource"}):
        client.update_automation(present[0].id, wanted)
