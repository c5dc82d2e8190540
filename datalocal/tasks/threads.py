"""How many threads torch computes with, for as long as something runs that wants another number of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Have torch compute with `count` threads, in this whole process; afterwards with as many as before."""
    import torch  # seconds: only what needs it pays for it

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
