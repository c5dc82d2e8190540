"""Sample images without a download: they lie inside packages of the extra `demo`."""
