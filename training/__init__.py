"""Train, evaluate and export hybrid models. Reads ``hqtl_common``; never ``serving``."""
