"""Python imports it at start-up in processes that the tests start: they are simulated as well."""

import os

import simulated

if simulated.VARIABLE in os.environ:
    simulated.become(os.environ[simulated.VARIABLE])
