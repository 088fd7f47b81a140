"""Serve a bundle over HTTP and score folders with it. Reads ``hqtl_common``; never torch, never ``training``."""
