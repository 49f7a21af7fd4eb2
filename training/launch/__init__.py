"""Starting the processes of a training with several ranks, on one or more nodes.

`launcher.py` starts torchrun on each node and lets nodes meet; `torchrun_agent.py` runs torchrun
and reports how ranks ended; `failure_reports.py` has what ranks and nodes report when they fail.
Each rank runs `training/worker.py`.
"""
