"""Processes that start at once: each is forked from one that has the slow modules; what they are given is pickled."""

import multiprocessing

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["scoreflow.studies", "scoreflow.training", "lightning_fabric", "scipy.integrate", "pandas"])
