"""Which version a model server serves, by labels in its models.config: canary, promotion, rollback, and a list.

The server refuses a label for a version that is not available, and accepts a configuration completely or not at all; so
every change is written in the server's order, each step by a rename, and each waits until the servers have taken the one
before:

    1. load     the versions that are to have labels, beside those that are loaded
    2. label    all labels as they shall be
    3. drop     the versions that have no label any more

Every command states labels as they shall be, and takes the steps that are missing. So it can be run again after any
interruption, and from whatever state another command that was stopped has left; README.md draws the states. Steps that
are not the last one say in a comment what they belong to, so that `promote` and `rollback` without a version are
finished when they are run again, and not done twice.

    labels         the states and steps, without a file or a server
    config_file    models.config: its text, and writing it
    servers        asks the servers, and waits until they have followed a step
    rollout        the commands: locks, steps, and putting back what a server does not follow
    followers      which models.config were ever used with a base path, and so which versions are needed
    listing        the versions under a base path, with their labels and numbers

The server does not split traffic: clients ask for a label. Other models in the file stay as they are.
"""

from serving.rollout.labels import CANARY, PREVIOUS, STABLE, Served
from serving.rollout.rollout import Rollout

__all__ = ["CANARY", "PREVIOUS", "STABLE", "Rollout", "Served"]
