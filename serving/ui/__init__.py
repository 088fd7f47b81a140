"""The page /ui: a client of the service's own routes, in a browser. It is there with HQTL_UI=1 and the extra ``ui``."""
