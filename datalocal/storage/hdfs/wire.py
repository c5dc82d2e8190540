"""What a read costs on the wire of HDFS, by its own rules. Pure."""

from __future__ import annotations

CHUNK_BYTES = 512
"""`dfs.bytes-per-checksum`: what a DataNode sends is widened to whole chunks, each with a CRC."""
CRC_BYTES = 4


def traced_bytes(offset: int, end: int, block_bytes: int) -> int:
    """What a DataNode's clienttrace and JMX count for one read of bytes [offset, end) of a block of `block_bytes`.

    The range is widened to chunks of 512 bytes (at the end: to the block's end) and 4 bytes of CRC are added per chunk; packet
    headers are not counted. Found by comparison with Hadoop 3.5.0, whose BlockSender does this in its constructor and in
    sendPacket.
    """
    first = offset // CHUNK_BYTES * CHUNK_BYTES
    last = min(-(-end // CHUNK_BYTES) * CHUNK_BYTES, block_bytes)
    return (last - first) + CRC_BYTES * -(-(last - first) // CHUNK_BYTES)
