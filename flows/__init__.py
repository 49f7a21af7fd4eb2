"""When and how the stages run: the command line, Prefect flows and DVC."""
