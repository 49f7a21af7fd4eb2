"""The flow nightly: what runs by the clock."""

from prefect import flow

from flows.train_dlrm import train_dlrm


@flow(name="nightly")
def nightly() -> None:
    """Retrain on whatever the log holds by now; nothing is done when nothing changed."""
    train_dlrm()
