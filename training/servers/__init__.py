"""Training with parameter servers: asynchronous workers, and embedding rows on servers.

The driver, which is the process of the train stage, runs Lightning's loop (`module.py`) and starts
the actors (`session.py`):

    TableServer  table_server.py   has a share of the rows of every embedding table
    DenseServer  dense_server.py   has the dense layers and their optimizer
    Coordinator  coordinator.py    decides which steps may begin
    Worker       worker.py         computes the gradients of steps

`engine.py` says what an actor is. `ray_engine.py` runs actors on Ray, and is the one file that
imports it; `local_engine.py` runs them in this process.
"""
