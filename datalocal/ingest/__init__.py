"""Bringing images into the stores: a user's folder, tars or Parquet become shards with replicas on the storage nodes."""

from datalocal.ingest.model import IngestReport, Layout
from datalocal.ingest.replicas import replica_nodes
from datalocal.ingest.run import ingest

__all__ = ["ingest", "replica_nodes", "IngestReport", "Layout"]
