"""Who is told when a night goes wrong: automations of the Prefect server, which is where they run.

They are known by their names: applied again, they are changed and not doubled. Addresses, which may
hold tokens, go into Prefect's blocks, which it shows masked; nothing here prints or raises them.
"""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from urllib.parse import quote, urlsplit
from uuid import UUID

from prefect.blocks.core import Block
from prefect.blocks.notifications import SlackWebhook
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import CallWebhook, ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import get_current_settings
from prefect.types import SecretDict
from pydantic import SecretStr

from common.config.loading import ConfigError
from flows.nightly.record import STATES
from flows.prefect_server import ensure_server

PREFIX = "clickmill: "
RUN = "prefect.flow-run."
ENDS_OF_NIGHTS = {f"{RUN}{name}" for name in STATES.values()}
FAILURES = {f"{RUN}{name}" for name in ("Failed", "Crashed", "TimedOut")}
SILENCE = timedelta(
    minutes=10
)  # of a run that lives: three beats, where nobody set PREFECT_FLOWS_HEARTBEAT_FREQUENCY to less than 180 s
LOCAL_SMTP = "mailto://127.0.0.1:25?mode=insecure"
WHAT_HAPPENED = "{{ flow.name }} {{ flow_run.name }}: {{ flow_run.state.name }}: {{ flow_run.state.message }} {{ (flow_run|ui_url) or '' }}"

Action = CallWebhook | SendNotification
Tell = Callable[[str], list[Action]]


def apply(webhook: str | None, email: str | None, night_every: timedelta) -> list[str]:
    """Make the automations on the configured server, or bring them up to date; their names.

    webhook: a URL, called with {"text": …}. email: an address. night_every: a night that ends later
    than this after the one before is late. Raises ConfigError where there is no server, or it
    refuses, or an address is none.
    """
    check_addresses(webhook, email)
    if get_current_settings().api.url is None:
        raise ConfigError(
            "no Prefect server is known that could send alerts; start it (prefect server start) or set PREFECT_API_URL"
        )
    url = ensure_server()
    try:
        wanted = automations(senders(webhook, email), night_every)
        for automation in wanted:
            put(automation)
    except PrefectHTTPStatusError as error:
        answer = f"{error.response.status_code} {error.response.reason_phrase}"  # and no more: the answer may repeat what it was sent
        raise ConfigError(
            f"the Prefect server at {url} answered {answer}; for 401, set PREFECT_API_AUTH_STRING as it has it"
        ) from None
    return [automation.name for automation in wanted]


def check_addresses(webhook: str | None, email: str | None) -> None:
    if webhook and not (
        urlsplit(webhook).scheme in ("http", "https") and urlsplit(webhook).hostname
    ):
        raise ConfigError(
            "--webhook: not a URL that begins with http:// or https:// and names a host"
        )
    if email and not all(email.partition("@")):
        raise ConfigError(f"--email: {email!r} is no address")
    if urlsplit(smtp()).scheme not in ("mailto", "mailtos"):
        raise ConfigError(
            "CLICKMILL_SMTP: not a mail server; mailtos://USER:PASSWORD@HOST:PORT?mode=starttls is one (Apprise's notation)"
        )


def smtp() -> str:
    return os.environ.get("CLICKMILL_SMTP", LOCAL_SMTP)


def senders(webhook: str | None, email: str | None) -> Tell:
    """What makes a text (a template of Prefect's) the actions that send it. The addresses are saved on the server."""
    json = SecretDict({"content-type": "application/json"})
    hook = (
        saved("clickmill-webhook", Webhook(url=SecretStr(webhook), headers=json))
        if webhook
        else None
    )
    # Of the blocks that come with Prefect this one hands any URL that is not Slack's to Apprise as
    # it is, a mail server's too.
    mail = saved("clickmill-email", SlackWebhook(url=SecretStr(mail_url(email)))) if email else None

    def tell(text: str) -> list[Action]:
        payload = "{% set text %}" + text + '{% endset %}{"text": {{ text|tojson }}}'
        calls: list[Action] = [CallWebhook(block_document_id=hook, payload=payload)] if hook else []
        return calls + (
            [SendNotification(block_document_id=mail, subject="clickmill", body=text)]
            if mail
            else []
        )

    return tell


def saved(name: str, block: Block) -> UUID:
    known = block.save(name, overwrite=True)
    assert isinstance(known, UUID)
    return known


def mail_url(address: str) -> str:
    """Apprise's: the server, then from and to. CLICKMILL_SMTP's own `from` goes before."""
    server, _, options = smtp().partition("?")
    return f"{server}?from={quote(address)}&to={quote(address)}&format=text&{options}"


def automations(tell: Tell, night_every: timedelta) -> list[AutomationCore]:
    failed = runs_of("nightly", "train-dlrm", expect=FAILURES)
    kept = runs_of("nightly", expect={f"{RUN}{STATES['kept']}"})
    # The end of a night begins the time in which the next one has to end; the first time begins
    # when the automation is made.
    missed = runs_of(
        "nightly",
        after=ENDS_OF_NIGHTS,
        expect=ENDS_OF_NIGHTS,
        posture=Posture.Proactive,
        within=night_every,
    )
    # A machine that goes down leaves its run RUNNING, and nobody would hear of it before the next
    # night is missing. Any event of the run will do, not a list of them: a run that ended under a
    # name of its own must not be called crashed.
    silent = runs_of(
        "nightly",
        "train-dlrm",
        after={f"{RUN}heartbeat"},
        expect={f"{RUN}*"},
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        within=SILENCE,
    )
    crash = ChangeFlowRunState(
        state=StateType.CRASHED,
        name="Crashed",
        force=False,
        message=f"no sign of life for {SILENCE / timedelta(minutes=1):g} min",
    )
    every = f"{night_every / timedelta(hours=1):g} h"
    return [
        automation(
            "a run failed",
            "A run of nightly or train-dlrm failed or crashed.",
            failed,
            tell(WHAT_HAPPENED),
        ),
        automation(
            "a night kept the old model",
            "The new model did not pass, or its data did not.",
            kept,
            tell(WHAT_HAPPENED),
        ),
        automation(
            "a night is missing",
            f"None ended for {every}.",
            missed,
            tell(f"nightly: no night has come to an end for {every}"),
        ),
        automation(
            "a run is dead", "Its heartbeats stopped: it is marked as crashed.", silent, [crash]
        ),
    ]


def runs_of(*flows: str, **conditions: Any) -> EventTrigger:
    """A trigger by events of runs of these flows, whether deployed or started by hand."""
    related: dict[str, str | list[str]] = {
        "prefect.resource.role": "flow",
        "prefect.resource.name": list(flows),
    }
    return EventTrigger(
        match={"prefect.resource.id": f"{RUN}*"}, match_related=related, **conditions
    )


def automation(
    name: str, description: str, trigger: EventTrigger, actions: list[Any]
) -> AutomationCore:
    return AutomationCore(
        name=PREFIX + name, description=description, trigger=trigger, actions=actions
    )


def put(wanted: AutomationCore) -> None:
    """Make it, or have the one of its name be as it is. One that is so already is left alone: a change would begin its times anew."""
    whole = AutomationCore(
        **wanted.model_dump(exclude={"owner_resource"})
    )  # an update sends only what was set, and this sets all
    with get_client(sync_client=True) as client:
        known = client.read_automations_by_name(wanted.name)
        if not known:
            client.create_automation(whole)
        elif known[0].model_dump(exclude={"id", "owner_resource"}) != whole.model_dump(
            exclude={"owner_resource"}
        ):
            client.update_automation(known[0].id, whole)
