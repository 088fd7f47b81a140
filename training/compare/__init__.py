"""Many trainings as one experiment: a grid of options, run by run resumable, and the tables and pictures that come of it.

``options`` reads the TOML file · ``grid`` makes the runs, ``checks`` refuses what cannot run · ``task`` trains a few of them ·
``engines``, ``local_engines`` and ``ray_engine`` decide where · ``folder`` is what lies on disk · ``results``, ``summary``, ``plots`` and
``screen`` are what comes out · ``experiment`` holds them together.
"""
