"""Training, evaluation, promotion and scoring of a DLRM, without Prefect and DVC."""
