"""datalocal: run image preprocessing and training where the shards lie, and account for every byte and joule.

The rooms, in the order data flows (imports point one way, towards values):

`spec` what the user writes -> `catalog` which shards exist and where -> `placement` policies, pure ->
`execution` the executors, the only room that knows dask -> `tasks` what runs on a node -> `ledger` records and
the run directory -> `report`. Beside them `storage` (open, read, write; each byte counted), `metering` (windows over
counters), `estimate` (a plan's bytes before it runs), `launch` (clusters up and down), `runner` (the story of one run).
"""

__version__ = "0.1.0"
