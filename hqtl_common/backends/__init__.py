"""Where the head runs: see ``base`` for what a backend is and ``registry`` for the names."""

from hqtl_common.backends.base import Backend, Capabilities
from hqtl_common.backends.registry import backend_capabilities, backend_names, get_backend

__all__ = ["Backend", "Capabilities", "backend_capabilities", "backend_names", "get_backend"]
